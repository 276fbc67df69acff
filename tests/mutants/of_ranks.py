"""Mutants of several ranks: rows, sums, noise, and what all of them must agree on."""

from __future__ import annotations

from mutant import Mutant

RUNS, DEATHS = "ranks/test_data_parallel.py::", "ranks/test_deaths.py::"
TALK, SHARDED = "ranks/test_collectives.py::", "ranks/test_sharded.py::"
STEP = "test_a_sharded_step_is_that_of_one_process"
SAME = RUNS + "test_parameters_after_uneven_steps_are_those_of_one_process"
BITS = RUNS + "test_float32_is_bit_equal_and_so_is_the_recorded_hash"
ALIKE = RUNS + "test_ranks_that_differ_are_refused_on_every_rank_at_once"
FAILS = RUNS + "test_every_rank_raises_for_a_row_of_one_and_leaves_it_out"
GOES_ON = DEATHS + "test_a_run_killed_on_two_ranks_goes_on_on_any_number"

MUTANTS = [
    Mutant("every rank runs all rows", "ranks/deal.py", "pieces = drawn.split(size)[rank::world]",
           "pieces = drawn.split(size)", (SAME, )),
    Mutant("a piece is dealt twice", "ranks/deal.py", "drawn.split(size)[rank::world]",
           "drawn.split(size)[max(rank - 1, 0)::world]",
           (TALK + "test_the_pieces_of_all_ranks_are_the_draw", )),
    Mutant("dropout by the rank's own count", "ranks/deal.py",
           "return (piece * world + rank) * size + row", "return count", (SAME, )),
    Mutant("the mean for the sum of all ranks", "ranks/scattered.py",
           "= sums[item].detach().reshape(-1)",
           "= sums[item].detach().reshape(-1) / self._wire.size", (SAME, )),
    Mutant("each rank draws the beginning of the noise", "privacy/noise/gaussian.py",
           "self._noised(draw(item, start + a, start + b),", "self._noised(draw(item, a, b),",
           (SAME, )),
    Mutant("noise before the reduction and after it", "ranks/scattered.py",
           "flat[start:start + size] = sums[item].detach().reshape(-1)",
           "flat[start:start + size] = sums[item].detach().reshape(-1) + "
           "torch.randn(size, dtype=torch.float64)", (SAME, )),
    Mutant("sums in the dtype of their parts", "privacy/logical_step.py", "s.double().add_(f) for",
           "s.add_(f) for", (BITS, )),
    Mutant("the count of one rank moves the bound", "privacy/release.py",
           "below = self._ranks.total(adaptive.below(step.result.norms))",
           "below = adaptive.below(step.result.norms)", (SAME, )),
    Mutant("every rank writes a ledger", "privacy/records/shared.py",
           "if ranks.size == 1: return Folder(path, seed, secure, counter)",
           "return Folder(path, seed, secure, counter)", (SAME, )),
    Mutant("another rank's failure is not seen", "ranks/group.py",
           "if raised is None: r = next(", "if False: r = next(", (FAILS, )),
    Mutant("ranks are not compared", "ranks/group.py", "if differing:", "if False:", (ALIKE, )),
    Mutant("rows are not compared", "ranks/group.py", "elif highest != -lowest:", "elif False:",
           (TALK + "test_what_ranks_agree_on", )),
    Mutant("a rank goes on without the debit", "privacy/records/shared.py",
           "value, fresh = self._ranks.decided(written)",
           "value, fresh = self._ranks.decided(written) if self._owned else (None, [])",
           (GOES_ON, )),
    Mutant("the digest depends on the number of ranks", "ranks/scattered.py",
           "return -(-blocks // self._wire.size) * totals.GRAIN",
           "return -(-count // self._wire.size)", (BITS, )),
    Mutant("gathered parameters are kept for the backward", "rewrite/passes/gather.py",
           "recompute(graph, names)", "recompute(graph, [])",
           (SHARDED + "test_collectives_are_those_of_ordinary_training_and_the_peak_is_lower", )),
    Mutant("copies of a part are not added up", "rewrite/passes/scatter.py",
           "if shards.copies == 1:", "if True:", (SHARDED + STEP, )),
    Mutant("a part is filled with rows of its neighbour", "ranks/shards.py",
           "ours = part[:len(sharded.to_local())].contiguous()",
           "ours = part.roll(1, 0)[:len(sharded.to_local())].contiguous()", (SHARDED + STEP, )),
    Mutant("a signal stays with its rank", "privacy/loop.py",
           "waiting.signal = self.private.ranks.highest(waiting.signal)", "pass",
           (DEATHS + "test_a_signal_to_one_rank_ends_all_after_the_same_step", )),
]
