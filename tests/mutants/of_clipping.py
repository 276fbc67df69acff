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
SINGLE = "privacy/test_single_rows.py::"
LONG = SINGLE + "test_sums_over_many_positions_stay_within_the_bound"
TF32 = SINGLE + "test_sums_of_tf32_operands_stay_within_the_bound"
ASKED = SINGLE + "test_tf32_is_asked_for_the_device_of_the_site"
CANCELLING = "privacy/test_promises.py::test_what_rounding_adds_to_cancelling_tokens_is_in_the_norm"

MUTANTS = [
    Mutant("min becomes max", "clipping/flat.py", "return torch.clamp(self.bound / norms, max=1.0)",
           "return torch.clamp(self.bound / norms, min=1.0)", (BELOW, )),
    Mutant("C becomes 2C", "clipping/rule.py", "return factors * (self.sensitivity / "
           "share).clamp(max=1.0)",
           "return factors * (2 * self.sensitivity / share).clamp(max=1.0)", (LYING, )),
    Mutant("a declared bound is trusted", "clipping/rule.py",
           "return factors * (self.sensitivity / share).clamp(max=1.0)", "return factors",
           (LYING, )),
    Mutant("a factor that is no number counts "
           "as 1", "clipping/rule.py", "torch.nan_to_num(factors.to(norms.dtype), nan=0.0)",
           "torch.nan_to_num(factors.to(norms.dtype), nan=1.0)", (LYING, )),
    Mutant("automatic clipping without "
           "gamma", "clipping/flat.py", "return self.bound / (norms + self.gamma)",
           "return self.bound / norms", (FORMULA + "[Automatic-auto]", )),
    Mutant("normalised with the floor as a "
           "ceiling", "clipping/flat.py", "norms.clamp(min=self.floor)",
           "norms.clamp(max=self.floor)",
           (BELOW, )),
    Mutant("per layer: the largest bound "
           "alone", "clipping/groups.py", "math.hypot(*self.bound) if isinstance",
           "max(self.bound) if isinstance", (FORMULA + "[PerLayer1-auto]", )),
    Mutant("per layer: the whole bound for "
           "each", "clipping/groups.py", "[self.bound / math.sqrt(len(norms))] * len(norms)",
           "[self.bound] * len(norms)", (BELOW, )),
    Mutant("per group: the largest bound "
           "alone", "clipping/groups.py", "math.hypot(*(value for _, value in self.bounds))",
           "max(value for _, value in self.bounds)", (FORMULA + "[PerGroup-auto]", )),
    Mutant("adaptive: the count moves "
           "by 1", "clipping/adaptive.py", ".double().sub(0.5).sum())", ".double().sum())",
           ("test_clipping.py::test_adaptive_counts_and_moves", )),
    Mutant("the mask is ignored", "rewrite/rewriter.py", "valid = mask & "
           "torch.isfinite(norms)", "valid = torch.isfinite(norms)", (ROWS + "[auto]", )),
    Mutant("a row that is not finite is kept", "rewrite/rewriter.py",
           "valid = mask & torch.isfinite(norms)", "valid = mask & mask",
           (BAD_ROW + "[nan-unfold]", )),
    Mutant("norm of the last site "
           "alone", "rewrite/emit.py", "squares[clip_group].append(_squared(self.uses[site.name], "
           "name))", "squares[clip_group] = [_squared(self.uses[site.name], "
           "name)]", (FORMULA + "[Flat-auto]", )),
    Mutant("clip skipped at small "
           "sites", "rewrite/emit.py", "by_factors(self.bundles[key], factors[:, key[0]], valid)",
           "by_factors(self.bundles[key], torch.ones_like(factors[:, 0]), "
           "valid)", (FORMULA + "[Flat-auto]", )),
    Mutant("small sites have no "
           "norm", "rewrite/emit.py", "squares[key[0]].append(raised(sq_norm(self.bundles[key]), "
           "key[1]))", "squares[key[0]].append(0 * sq_norm(self.bundles[key]))",
           (FORMULA + "[Flat-auto]", )),
    Mutant("two results become one tensor", "rewrite/passes/remove_redundant.py",
           "repeated = _cheap(node) and node not in handed", "repeated = _cheap(node)",
           ("passes/test_tidy.py::test_equal_results_stay_two_tensors", )),
    Mutant("a sum does not look for invalid "
           "rows", "kernels/summing.py", "if not bool(valid.all()):", "if False:",
           ("kernels/test_summing.py::test_a_row_that_is_not_finite_reaches_nobody", )),
    Mutant("random draws become one", "rewrite/passes/remove_redundant.py", "or random(node) or "
           "writes(node)", "or writes(node)",
           ("passes/test_tidy.py::test_random_draws_and_written_memory_keep_their_operations", )),
    Mutant("clip skipped at weights used twice", "rewrite/emit.py",
           "sums[param] = by_factors(grads, factors[:, self.clip_groups[param]], valid)",
           "sums[param] = by_factors(grads, torch.ones_like(factors[:, 0]), valid)",
           (SHARED + "[weight norm-multi]", SHARED + "[attention, one projection in pieces-auto]")),
    Mutant("weights used twice have no norm", "rewrite/emit.py",
           "squares[self.clip_groups[param]].append(raised(sq_norm(grads), grads.dtype))",
           "squares[self.clip_groups[param]].append(0 * sq_norm(grads))",
           (SHARED + "[weight norm-multi]", SHARED + "[attention, one projection in pieces-auto]")),
    Mutant("mean before clip", "rewrite/evaluate.py", "torch.autograd.grad(run.loss.sum(), flat",
           "torch.autograd.grad(run.loss.mean(), flat", (ROWS + "[auto]", )),
    Mutant("naive: clip skipped", "rewrite/rewriter.py", "by_factors(g.unsqueeze(0), factors[:, "
           "k], valid) for g, k",
           "by_factors(g.unsqueeze(0), torch.ones_like(factors[:, k]), valid) for "
           "g, k", (FORMULA + "[Flat-naive]", )),
    Mutant("16-bit operands are not "
           "widened", "rewrite/emit.py", "weighted_sum(widened(values),",
           "weighted_sum(values,",
           ("privacy/test_promises.py::test_16_bit_sums_stay_within_the_bound", )),
    Mutant("norms in bfloat16", "numerics/norms.py", "torch.linalg.vector_norm(",
           "(lambda v, dim: torch.linalg.vector_norm(v.bfloat16(), dim=dim))(", (LINEAR, )),
    Mutant("norms of one long vector", "numerics/norms.py", "BLOCK = ", "BLOCK = 2**40 + ",
           ("privacy/test_promises.py::test_long_norms_are_not_read_low", )),
    Mutant("the certified bound is dropped", "numerics/rounding.py",
           "torch.maximum(norm, (norm + rho * spread) / (1 + 0.75 * "
           "SLACK)).square()", "norm.square()", (CANCELLING, )),
    Mutant("ghost forgets the rounding of its sum", "strategies/ghost.py",
           "certified(squared, spread, rho, gram=", "certified(squared, spread, 0.0, gram=",
           (LONG + "[conv 32]", )),
    Mutant("embedding norms forget the rounding", "strategies/ghost.py",
           "rounding.certified(squared, torch.ones_like(moved), moved, "
           "read)", "squared", (CANCELLING, )),
    Mutant("the number of additions is forgotten", "numerics/rounding.py",
           "count = count + (2 if scaled", "count = (2 if scaled", (LONG + "[conv 32]", )),
    Mutant("lengths are those of rounded "
           "gradients", "numerics/rounding.py", "total = (a * g).sum(2)",
           "total = 0.1 * (a * g).sum(2)", (TF32 + "[ghost-model0-shape0-_nearest]", )),
    Mutant("streamed norms forget the rounding", "strategies/fused.py",
           "return rounding.certified(squared, spread, rho, read)", "return squared",
           (TF32 + "[fused-model1-shape1-_nearest]", )),
    Mutant("outer products forget the rounding", "strategies/outer.py",
           "return rounding.certified(squared, spread, "
           "rho)", "return squared", (TF32 + "[outer-model2-shape2-_nearest]", )),
    Mutant("TF32 is asked of the CPU "
           "alone", "numerics/rounding.py", "product, convolution = operands(site.device)",
           'product, convolution = operands(torch.device("cpu"))', (ASKED, )),
    Mutant("convolutions on a GPU are taken to be "
           "sums", "numerics/rounding.py", 'if site.device.type == "cuda" and torch',
           'if site.device.type == "none" and torch', (ASKED, )),
    Mutant("stored norms may be "
           "read low", "numerics/rounding.py", "READING = 24 *", "READING = 0 *",
           (SINGLE + "test_a_norm_is_not_read_lower_than_its_bound_allows", )),
    Mutant("TF32 may be allowed after the plan is "
           "made", "numerics/rounding.py", "if any(error > limit for", "if any(error < limit for",
           (SINGLE + "test_a_step_is_refused_once_products_round_more_than_it_was_made_for", )),
    Mutant("Gram matrices in "
           "float32", "numerics/factors.py", "return wide @ (wide if x is y else "
           "y.double()).transpose(2, 3)", "return (x.float() @ y.float().transpose(2, "
           "3)).double()", (KIND + "[linear-1-float64]", )),
    Mutant("outer forgets all groups but the largest", "strategies/outer.py",
           "(inputs * outputs).sum((1, 2))", "(inputs * outputs).sum(2).amax(1)",
           (KIND + "[linear-11-float64]", )),
    Mutant("stored gradients of rows that do not count are kept", "kernels/weighted.py",
           "flat = torch.where(valid[:, None], "
           "flat,", "flat = torch.where(valid[:, None] | True, flat,",
           (BAD_ROW + "[nan-unfold]", )),
    Mutant("a tied use forgotten in the "
           "norm", "layers/joined.py", "for part in values.parts:\n            a, g = gram_kind",
           "for part in values.parts[:1]:\n            a, g = gram_kind",
           (JOINED + "[linear twice]", )),
    Mutant("a tied embedding's other use "
           "forgotten", "layers/joined.py", 'return values.cache["pairs"]',
           'return values.cache["pairs"][:1]', (JOINED + "[embedding and output]", )),
    Mutant("only the first use is "
           "stored", "layers/joined.py", "upright(gradients(part), part) for part in "
           "reversed(values.each)", "upright(gradients(part), part) for part in "
           "values.each[:1]", (JOINED + "[linear twice]", )),
    Mutant("clip skipped at linear "
           "layers", "layers/linear.py", "scaled(values.grad, values.out_axis, factors, valid)",
           "scaled(values.grad, values.out_axis, torch.ones_like(factors), valid)", (LINEAR, )),
    Mutant("clip skipped at small "
           "convolutions", "layers/conv.py", "g * factors.to(g.dtype)[:, None, None, None], zero",
           "g + 0 * factors.to(g.dtype)[:, None, None, None], "
           "zero", (KIND + "[conv-7-float64]", KIND + "[conv-6-float64]")),
    Mutant("rows that do not count are not "
           "cleaned", "layers/shapes.py", "return torch.where(spread(valid, axis, x.dim()), x,",
           "return torch.where(spread(valid | True, axis, "
           "x.dim()), x,", (BAD_ROW + "[nan-ghost]", )),
    Mutant("padding tokens add to the "
           "norm", "layers/embedding.py", "return ids, g if padding < 0 else",
           "return ids, g if True else", (KIND + "[embedding-1-float64]", )),
    Mutant("one padded row "
           "counts", "runtime/batches.py", "mask = torch.arange(rows, device=padded[0].device) < "
           "count", "mask = torch.arange(rows, device=padded[0].device) <= count",
           (ROWS + "[auto]", )),
    Mutant("only the last physical batch is "
           "summed", "runtime/step.py", "sums = _own(formed) if sums is None else [",
           "sums = _own(formed) if sums is None or True else [", (ROWS + "[auto]", )),
]
