"""Profiles: measured, kept, checked when read; a shipped one so that nothing needs measuring
first.
"""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxperex
from fxperex.costs import Cost, Work
from fxperex.devices import (
    Profile,
    calibrate,
    device_name,
    grids,
    heap,
    keep_pages,
    profile,
    profile_files,
    target,
)
from fxperex.devices.calibrate import measurements
from fxperex.devices.interpolate import Surface
from fxperex.devices.kernel_classes import KERNELS
from fxperex.devices.profile import VERSION
from fxperex.errors import ConfigError
from fxperex.plan.plan import Plan
from fxperex.registry import strategies
from fxperex.sites import Site

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXPEREX_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def measured() -> Profile:
    return calibrate(CPU, budget=0.0)


def test_a_spent_budget_still_measures_every_kernel(measured: Profile) -> None:
    assert set(measured.samples) == set(KERNELS)
    assert measured.source == "measured" and measured.device == device_name(CPU)


def test_json_round_trip(measured: Profile) -> None:
    again = Profile.from_json(measured.to_json())
    assert again.device == measured.device and again.samples.keys() == measured.samples.keys()
    for kernel, by in measured.samples.items():
        for dtype, rows in by.items():
            for (shape, rate), (shape_again, rate_again) in zip(rows, again.samples[kernel][dtype],
                                                                strict=True):
                assert shape == shape_again and math.isclose(rate, rate_again, rel_tol=1e-3)


@pytest.mark.parametrize("path", sorted(profile_files.SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_profiles_read_and_say_where_they_are_from(path: Path) -> None:
    found = Profile.from_json(path.read_text())
    assert (found.source == "measured") != ("not measured" in found.source)
    assert ("not-measured" in path.name) == (found.source != "measured")
    assert all(set(by) >= {"float32"} for by in found.samples.values())


def test_the_first_profile_is_shipped_and_nothing_is_measured(
        cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", None)  # every measurement begins with it
    assert profile(CPU).device.startswith("cpu-") and not list(cache.iterdir())


def test_a_measured_profile_is_kept_and_found(cache: Path, measured: Profile) -> None:
    assert profile_files.save(measured).parent == cache
    assert profile(CPU).samples["copy"] == Profile.from_json(measured.to_json()).samples["copy"]


@pytest.mark.parametrize("spoil", [
    lambda t: t.replace(f'"version": {VERSION}', '"version": 1'), lambda t: t[:len(t) // 2],
    lambda t: "[]", lambda t: "", lambda t: t.replace('"copy"', '"kopy"'),
    lambda t: t.replace('"torch": "', '"torch": "0.'), lambda t: t.replace('[[[1], ', '[[[1], -')
], ids=["version", "cut", "list", "empty", "basic kernel", "torch", "negative"])
def test_a_broken_or_foreign_profile_is_passed_over_with_a_warning(cache: Path, measured: Profile,
                                                                   spoil: object) -> None:
    text = measured.to_json()
    broken = spoil(text)  # type: ignore[operator]
    assert broken != text
    (cache / f"{device_name(CPU)}.json").write_text(broken)
    with pytest.warns(UserWarning, match="device profile .* (is not used|not used)"):
        found = profile(CPU)
    assert found.samples["copy"] != Profile.from_json(text).samples["copy"]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel class that no profile has samples of."""
    monkeypatch.setitem(KERNELS, "mine", replace(KERNELS["bmm"]))
    return "mine"


def test_a_kernel_that_was_never_measured_has_the_rate_of_its_nearest_relative(added: str) -> None:
    rates, shape = profile(CPU), (8, 64, 64, 64)
    work = Work(added, shape, 2.0 * math.prod(shape))
    relative = replace(work, kernel="bmm")
    assert rates.of(work) == rates.of(relative)
    assert rates.of(replace(work, dtype="float64")) == rates.of(replace(relative, dtype="float64"))
    assert rates.error(Cost((work,))) > 0.9 > rates.error(Cost((relative,)))
    assert rates.relatives([Cost((work, relative))]) == {added: "bmm"}


@pytest.mark.parametrize(("axes", "amount", "source"), [
    (("b", "p", "t", "d"), grids.float32_bytes, "im2col"), (("a", "b"), grids.flop, "mm"),
    (("rows", "size"), grids.float32_bytes, "norm"), (("one",), grids.float32_bytes, "launch")])
def test_a_relative_has_the_same_axes_or_as_many_or_the_same_unit(
        axes: tuple[str, ...], amount: Callable[..., float], source: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "mine", replace(KERNELS["bmm"], axes=axes, amount=amount,
                                                 shapes=(), allocates=lambda shape: ()))
    work = Work("mine", (8,) * len(axes), 1e6)
    assert profile(CPU).relatives([Cost((work,))]) == {"mine": source}
    assert 0 < profile(CPU).of(work) < math.inf


def test_a_kernel_that_this_library_does_not_have_is_ignored(measured: Profile) -> None:
    text = measured.to_json().replace('"mm"', '"nn"')
    foreign = Profile.from_json(text)
    work = Work("mm", (64, 64, 64), 2.0 * 64**3)
    assert "nn" not in foreign.errors and foreign.relatives([Cost((work,))]).keys() == {"mm"}
    assert Profile.from_json(foreign.to_json()).samples == foreign.samples


def test_a_plan_says_which_kernel_was_never_measured(added: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    unfold = strategies()["unfold"]

    def cost(site: Site) -> Cost:
        priced = type(unfold).cost(unfold, site)
        work = [replace(w, kernel=added) if w.kernel.startswith("bmm") else w for w in priced.work]
        return replace(priced, work=tuple(work))

    monkeypatch.setattr(unfold, "cost", cost, raising=False)
    batch = torch.randn(4, 5, 6), torch.randn(4, 5, 3)
    plan = fxperex.transform(nn.Linear(6, 3), batch, lambda y, z: (y - z).square().mean(),
                             strategy="unfold", backend="eager").plan
    assert plan.unmeasured == {added: "bmm"} == Plan.from_json(plan.to_json()).unmeasured
    assert "'mine' was never measured" in str(plan) and "'bmm'" in str(plan)


@pytest.mark.parametrize("name", ["quantum", "mps", "meta", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device .*(cpu, cuda)"):
        target(name)


def test_a_missing_gpu_is_refused_for_measuring_only() -> None:
    assert target("cuda").type == "cuda"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            profile_files.present(torch.device("cuda"))


def test_a_surface_is_close_where_measured_and_between_elsewhere() -> None:
    shapes = ((8, 8), (64, 8), (8, 64), (64, 64), (512, 512))
    surface = Surface(shapes, (1e9, 2e9, 2e9, 4e9, 5e9))
    for shape, rate in zip(shapes, surface.rates, strict=True):
        assert math.isclose(surface.rate(shape), rate,
                            rel_tol=0.1)  # what a measurement is trusted for
    assert 1e9 < surface.rate((24, 24)) < 4e9
    assert surface.rate((10**6, 10**6)) == surface.rate((512, 512))  # flat beyond what was measured


def test_a_surface_follows_a_law_where_only_some_corners_were_measured() -> None:
    def law(m: int, k: int, n: int) -> float:
        return 3e11 / (1 + 40 / m + 20 / k + 40 / n)

    shapes = [(m, k, n)
              for m in (8, 64, 512)
              for k in (8, 64, 512)
              for n in (8, 64, 512)
              if m * k * n <= 512 * 512 * 64]
    surface = Surface(tuple(shapes), tuple(law(*s) for s in shapes))
    assert surface.leave_one_out() < 0.2
    assert math.isclose(surface.rate((512, 512, 512)), law(512, 512, 512),
                        rel_tol=0.35)  # the corner that was too large


def test_seconds_add_up_and_grow_with_the_work() -> None:
    rates = profile(CPU)
    one = Work("mm", (256, 512, 256), 2.0 * 256 * 512 * 256)
    assert math.isclose(rates.seconds(Cost((one, one), launches=0)), 2 * rates.of(one))
    assert rates.of(Work("mm", (256, 512, 256), one.amount,
                         calls=3)) == pytest.approx(3 * rates.of(one))
    assert rates.seconds(Cost((one,), bytes=1e9)) > rates.seconds(Cost((one,))) + 1e-3
    assert rates.error(Cost((one,))) > 0


def test_every_shape_of_every_kernel_is_measured_once() -> None:
    for name, kernel in KERNELS.items():
        given = [shape for found, _, dtype, shape in measurements()
                 if found == name and dtype == torch.float32]
        assert sorted(given) == sorted(set(kernel.shapes)) and len(kernel.shapes) == len(
            set(kernel.shapes))


@pytest.mark.parametrize("how", ["None", "heap.keep_pages() or None",
                                 "heap.hold_heap(240 * 2**20)"])
def test_kept_pages_are_not_faulted_in_again(how: str) -> None:
    code = ("import resource, torch; from fxperex.devices import heap\n"
            f"kept = {how}\n"
            "for _ in range(5):\n"  # until the heap has its shape
            "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "    [torch.empty(10 * 2**20).fill_(1.0) for _ in range(3)]\n"
            "print(int(kept is not None), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - "
            "before)")
    told = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE,
                          text=True).stdout
    done, faults = map(int, told.split())
    pages, glibc = 3 * 40 * 2**20 / resource.getpagesize(), platform.libc_ver()[0] == "glibc"
    assert done == (how != "None" and glibc)
    assert not done or faults < 0.05 * pages
    assert done or not glibc or faults > 0.5 * pages, "nothing would be gained"


def test_plans_do_not_pay_for_touching_pages_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, large = profile(CPU), 2.0**27
    patches = Work("im2col", (32, 64, 4096, 9), large)
    before = rates.touching(large), rates.of(Work("fresh", (int(large),), large)), rates.of(patches)
    assert before[0] == before[1] > 0
    monkeypatch.setattr(heap, "_outcomes", [True])
    assert rates.touching(large) == rates.of(Work("fresh", (int(large), ),
                                                  large)) == 0 < rates.of(patches) < before[2]


def test_a_heap_that_cannot_be_held_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(size: int) -> None:
        raise RuntimeError("not enough memory")

    assert heap.hold_heap(0.0) is not None or platform.libc_ver()[0] != "glibc"
    monkeypatch.setattr(heap, "_bytes", full)
    assert heap.hold_heap(2.0**30) is None
    monkeypatch.setattr(heap, "_outcomes", [True])
    assert heap.hold_heap(1.0) is None  # pages are kept anyway


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not keep_pages() and heap.hold_heap(1.0) is None
