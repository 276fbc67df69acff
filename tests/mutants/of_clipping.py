"""Mutants of norms, clip factors, weighted sums and strategies."""

from __future__ import annotations

from mutant import Mutant

BELOW = "privacy/test_promises.py::test_a_gradient_below_its_bound_is_left_alone"
FORMULA = "test_clipping.py::test_the_step_is_the_formula"
LYING = "test_clipping.py::test_a_lying_rule_is_held_to_its_word"
ROWS = "test_runtime.py::test_any_number_of_rows"
BAD_ROW = "test_bad_inputs.py::test_a_bad_example_adds_exactly_nothing"
SHARED = "test_runtime.py::test_shared_and_derived_weights"
JOINED = "test_sites.py::test_uses_of_one_tensor_are_one_site"
KIND = "test_registry.py::test_against_the_loop"
LINEAR = KIND + "[linear-0-float64]"
CANCELLING = "privacy/test_promises.py::test_what_rounding_adds_to_cancelling_tokens_is_in_the_norm"

MUTANTS = [
    Mutant("min becomes max", "clipping.py", "return torch.clamp(self.bound / norms, max=1.0)",
           "return torch.clamp(self.bound / norms, min=1.0)", (BELOW,)),
    Mutant("C becomes 2C", "clipping.py", "return made * (self.sensitivity / share).clamp(max=1.0)",
           "return made * (2 * self.sensitivity / share).clamp(max=1.0)", (LYING,)),
    Mutant("a declared bound is trusted", "clipping.py", "return made * (self.sensitivity / share).clamp(max=1.0)", "return made",
           (LYING,)),
    Mutant("a factor that is no number counts as 1", "clipping.py", "torch.nan_to_num(made.to(norms.dtype), nan=0.0)",
           "torch.nan_to_num(made.to(norms.dtype), nan=1.0)", (LYING,)),
    Mutant("automatic clipping without gamma", "clipping.py", "return self.bound / (norms + self.gamma)",
           "return self.bound / norms", (FORMULA + "[Automatic-auto]",)),
    Mutant("normalised with the floor as a ceiling", "clipping.py", "norms.clamp(min=self.floor)", "norms.clamp(max=self.floor)",
           (BELOW,)),
    Mutant("per layer: the largest bound alone", "clipping.py", "math.hypot(*self.bound) if isinstance",
           "max(self.bound) if isinstance", (FORMULA + "[PerLayer1-auto]",)),
    Mutant("per layer: the whole bound for each", "clipping.py", "[self.bound / math.sqrt(len(norms))] * len(norms)",
           "[self.bound] * len(norms)", (BELOW,)),
    Mutant("per group: the largest bound alone", "clipping.py", "math.hypot(*(value for _, value in self.bounds))",
           "max(value for _, value in self.bounds)", (FORMULA + "[PerGroup-auto]",)),
    Mutant("adaptive: the count moves by 1", "clipping.py", ".double().sub(0.5).sum())", ".double().sum())",
           ("test_clipping.py::test_adaptive_counts_and_moves",)),
    Mutant("the mask is ignored", "rewriter.py", "valid = mask & torch.isfinite(norms)", "valid = torch.isfinite(norms)",
           (ROWS + "[auto]",)),
    Mutant("a row that is not finite is kept", "rewriter.py", "valid = mask & torch.isfinite(norms)", "valid = mask & mask",
           (BAD_ROW + "[nan-unfold]",)),
    Mutant("norm of the last site alone", "emit.py", "totals[at] = totals[at] + strategies()[name].sq_norm(",
           "totals[at] = strategies()[name].sq_norm(", (FORMULA + "[Flat-auto]",)),
    Mutant("clip skipped at the biases", "emit.py", "factors[:, self._clip_group(site)], valid)",
           "factors[:, self._clip_group(site)] if len(site.shape) > 1 else torch.ones_like(factors[:, 0]), valid)",
           (FORMULA + "[Flat-auto]",)),
    Mutant("clip skipped at weights used twice", "emit.py",
           "made[param] = by_factors(grads, factors[:, self.clip_groups[param]], valid)",
           "made[param] = by_factors(grads, torch.ones_like(factors[:, 0]), valid)",
           (SHARED + "[weight norm-multi]", SHARED + "[attention, one projection in pieces-auto]")),
    Mutant("weights used twice have no norm", "emit.py", "totals[at] = totals[at] + sq_norm(grads)",
           "totals[at] = totals[at] + 0 * sq_norm(grads)",
           (SHARED + "[weight norm-multi]", SHARED + "[attention, one projection in pieces-auto]")),
    Mutant("mean before clip", "evaluate.py", "torch.autograd.grad(run.loss.sum(), flat",
           "torch.autograd.grad(run.loss.mean(), flat", (ROWS + "[auto]",)),
    Mutant("naive: clip skipped", "rewriter.py", "by_factors(g.unsqueeze(0), factors[:, k], valid) for g, k",
           "by_factors(g.unsqueeze(0), torch.ones_like(factors[:, k]), valid) for g, k", (FORMULA + "[Flat-naive]",)),
    Mutant("16-bit operands are not widened", "emit.py", "weighted_sum(widened(self.uses[site.name]),",
           "weighted_sum(self.uses[site.name],", ("privacy/test_promises.py::test_16_bit_sums_stay_within_the_bound",)),
    Mutant("norms in bfloat16", "numerics.py", "torch.linalg.vector_norm(",
           "(lambda v, dim: torch.linalg.vector_norm(v.bfloat16(), dim=dim))(", (LINEAR,)),
    Mutant("norms of one long vector", "numerics.py", "BLOCK = ", "BLOCK = 2**40 + ",
           ("privacy/test_promises.py::test_long_norms_are_not_read_low",)),
    Mutant("the certified bound is dropped", "config.py", "return (ROUNDING * unit) ** 2 / (2 * SLACK)", "return 0.0",
           (CANCELLING,)),
    Mutant("ghost forgets the rounding of its sum", "strategies/ghost.py", "(gamma(uses.dtype) + GRAM_ROUNDING) *", "0 *",
           (CANCELLING,)),
    Mutant("embedding norms forget the rounding", "strategies/ghost.py", "+ 4 * gamma(g.dtype) * lengths.square()", "",
           (CANCELLING,)),
    Mutant("Gram matrices in float32", "layers/joined.py", "return x.double() @ y.double().transpose(2, 3)",
           "return (x.float() @ y.float().transpose(2, 3)).double()", (KIND + "[linear-1-float64]",)),
    Mutant("outer forgets all groups but the largest", "strategies/outer.py", ".reshape(b, groups).sum(1)",
           ".reshape(b, groups).amax(1)", (KIND + "[linear-11-float64]",)),
    Mutant("stored gradients of rows that do not count are kept", "kernels/weighted.py",
           "flat = torch.where(valid[:, None], flat,", "flat = torch.where(valid[:, None] | True, flat,",
           (BAD_ROW + "[nan-unfold]",)),
    Mutant("a tied use forgotten in the norm", "layers/joined.py", "for part in uses.parts:\n            a, g = kinds()",
           "for part in uses.parts[:1]:\n            a, g = kinds()", (JOINED + "[linear twice]",)),
    Mutant("a tied embedding's other use forgotten", "layers/joined.py", 'return uses.cache["pairs"]',
           'return uses.cache["pairs"][:1]', (JOINED + "[embedding and output]",)),
    Mutant("only the first use is stored", "layers/joined.py", "upright(gradients(part), part) for part in reversed(uses.each)",
           "upright(gradients(part), part) for part in uses.each[:1]", (JOINED + "[linear twice]",)),
    Mutant("clip skipped at linear layers", "layers/linear.py", "scaled(uses.grad, uses.out_axis, factors, valid)",
           "scaled(uses.grad, uses.out_axis, torch.ones_like(factors), valid)", (LINEAR,)),
    Mutant("clip skipped at small convolutions", "layers/conv.py", "g = g * factors.to(g.dtype)[:, None, None, None]",
           "g = g + 0 * factors.to(g.dtype)[:, None, None, None]", (KIND + "[conv-7-float64]", KIND + "[conv-6-float64]")),
    Mutant("rows that do not count are not cleaned", "layers/shapes.py", "return torch.where(spread(valid, axis, x.dim()), x,",
           "return torch.where(spread(valid | True, axis, x.dim()), x,", (BAD_ROW + "[nan-ghost]",)),
    Mutant("padding tokens add to the norm", "layers/embedding.py", "return ids, g if padding < 0 else",
           "return ids, g if True else", (KIND + "[embedding-1-float64]",)),
    Mutant("one padded row counts", "runtime.py", "mask = torch.arange(self._rows, device=rows[0].device) < count",
           "mask = torch.arange(self._rows, device=rows[0].device) <= count", (ROWS + "[auto]",)),
    Mutant("only the last physical batch is summed", "runtime.py", "sums = self._keep(found) if sums is None else [",
           "sums = self._keep(found) if sums is None or True else [", (ROWS + "[auto]",)),
]
