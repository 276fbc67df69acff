"""Images and noise from models: a variational autoencoder and a diffusion U-Net, both with squared
errors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Case, family


class VAE(nn.Module):
    """The noise of the reparameterisation comes in as an input, so that the loop sees the same
    draw.
    """

    def __init__(self, width: int = 8, latent: int = 5) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.SiLU(),
                                     nn.Conv2d(width, 2 * width, 3, 2, 1), nn.SiLU())
        self.mean, self.log_variance = nn.Linear(32 * width, latent), nn.Linear(32 * width, latent)
        self.inflate = nn.Linear(latent, 32 * width)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.SiLU(),
                                     nn.ConvTranspose2d(width, 1, 4, 2, 1))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x).flatten(1)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + noise * (0.5 * log_variance).exp()
        return self.decoder(self.inflate(z).view(len(x), -1, 4, 4)), mean, log_variance


def elbo(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    picture, mean, log_variance = model(x, noise)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return F.mse_loss(picture, x) + 0.01 * divergence.mean()


@family("VAE", "generative")
def vae() -> Case:
    return Case(VAE(), (torch.randn(4, 1, 16, 16), torch.randn(4, 5)), elbo)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(),
                                 nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time = nn.Linear(time, 2 * outputs)
        self.norm, self.two = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, 1)
        h = self.norm(self.one(x)) * (1 + scale) + shift
        return self.skip(x) + self.two(F.silu(h))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(4, width)
        self.mix, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.mix(self.norm(x)).view(b, 3, self.heads, c // self.heads,
                                              h * w).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).reshape(b, c, h, w))


class Diffusion(nn.Module):
    """The DDPM network (arXiv 2006.11239) in small: time embedding, residual blocks, attention in
    the middle.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(),
                                  nn.Linear(4 * width, 4 * width))
        self.head = nn.Conv2d(1, width, 3, padding=1)
        self.down = _Residual(width, 2 * width, 4 * width)
        self.middle, self.attention = _Residual(2 * width, 2 * width,
                                                4 * width), _Attention(2 * width)
        self.up = _Residual(3 * width, width, 4 * width)
        self.tail = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(),
                                  nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = torch.exp(
            torch.arange(self.width // 2, dtype=x.dtype) * (-math.log(1e4) / (self.width // 2)))
        angle = t[:, None].to(x.dtype) * rates[None]
        t = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        first = self.head(x)
        h = self.attention(self.middle(F.avg_pool2d(self.down(first, t), 2), t))
        return self.tail(self.up(torch.cat([F.interpolate(h, scale_factor=2), first], 1), t))


def denoise(model: nn.Module, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    kept = torch.cos(t.to(x.dtype) / 1000)[:, None, None, None]
    return F.mse_loss(model(kept * x + (1 - kept.square()).sqrt() * noise, t), noise)


@family("DDPM U-Net", "generative")
def diffusion() -> Case:
    return Case(Diffusion(),
                (torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.randint(0, 1000,
                                                                                 (3, ))), denoise)
