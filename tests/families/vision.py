"""Images: torchvision's classification families, segmentation, timm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Case, classify, family, images, normless, still

# constructor, image size, further arguments, heavy
TORCHVISION: list[tuple[str, int, dict[str, object], bool]] = [
    ("alexnet", 64, {}, False), ("vgg11", 32, {}, True), ("resnet18", 32, {}, False),
    ("resnet50", 32, {}, True), ("resnext50_32x4d", 32, {}, True),
    ("wide_resnet50_2", 32, {}, True), ("squeezenet1_1", 32, {}, False),
    ("densenet121", 32, {}, True),
    ("googlenet", 32, {"aux_logits": False, "init_weights": False}, True),
    ("inception_v3", 75, {"aux_logits": False, "init_weights": False}, True),
    ("mobilenet_v2", 32, {}, False), ("mobilenet_v3_small", 32, {}, True),
    ("mobilenet_v3_large", 32, {}, True), ("mnasnet0_5", 32, {}, True),
    ("shufflenet_v2_x0_5", 32, {}, True), ("efficientnet_b0", 32, {}, True),
    ("efficientnet_v2_s", 32, {}, True), ("regnet_y_400mf", 32, {}, True),
    ("regnet_x_400mf", 32, {}, True), ("convnext_tiny", 32, {}, True), ("swin_t", 32, {}, True),
    ("swin_v2_t", 64, {}, True), ("maxvit", 64, {}, True), ("vit", 32, {}, False)
]


def _torchvision(name: str, size: int, options: dict[str, object]) -> Case:
    from torchvision import models

    if name == "vit":
        model: nn.Module = models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    elif name == "maxvit":
        model = models.MaxVit((size, size), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=10)
    else:
        model = models.get_model(name, weights=None, num_classes=10, **options)
    return Case(still(normless(model)), images(2, size), classify)


for _name, _size, _options, _heavy in TORCHVISION:
    family(f"torchvision {_name}", "images", "torchvision", _heavy)(
        lambda name=_name, size=_size, options=_options: _torchvision(name, size, options))


def _segment(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x)["out"], y)


def _segmentation(name: str) -> Case:
    from torchvision import models

    model = getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
    return Case(still(normless(model)),
                (torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32))), _segment)


family("FCN, ResNet-50", "segmentation", "torchvision", True)(lambda: _segmentation("fcn_resnet50"))
family("DeepLabV3, MobileNetV3", "segmentation", "torchvision",
       True)(lambda: _segmentation("deeplabv3_mobilenet_v3_large"))
family("LR-ASPP, MobileNetV3", "segmentation", "torchvision", True)(
    lambda: _segmentation("lraspp_mobilenet_v3_large"))


class UNet(nn.Module):
    """Two levels, concatenated skips, one score per pixel and class."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._block(3, width), self._block(width, 2 * width)])
        self.middle = self._block(2 * width, 4 * width)
        self.up = nn.ModuleList([
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2)
        ])
        self.join = nn.ModuleList(
            [self._block(4 * width, 2 * width),
             self._block(2 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def _block(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs),
                             nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 3, padding=1),
                             nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)


@family("U-Net, per-pixel loss", "segmentation")
def unet() -> Case:
    return Case(UNet(), (torch.randn(3, 3, 16, 16), torch.randint(0, 4, (3, 16, 16))), classify)


def _timm(name: str, size: int, **options: object) -> Case:
    import timm

    return Case(
        still(normless(timm.create_model(name, pretrained=False, num_classes=10, **options))),
        images(2, size), classify)


family("timm ViT", "images",
       "timm")(lambda: _timm("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, depth=2))
family("timm ConvNeXt", "images", "timm")(lambda: _timm("convnext_atto", 32, depths=(1, 1, 2, 1)))
family("timm EfficientNet", "images", "timm", True)(lambda: _timm("efficientnet_b0", 32))
