"""Mutants of noise, sampling, accounting, transaction, ledger and checkpoint."""

from __future__ import annotations

from mutant import Mutant

NOISE, ENGINE, FOLDER, FAULTS = (f"privacy/test_{n}.py::" for n in ("noise", "engine", "folder",
                                                                    "faults"))
SAMPLING, ACCOUNT, PROMISE = (f"privacy/test_{n}.py::" for n in ("sampling", "accountant",
                                                                 "promises"))
LAYOUT, DISCRETE = "privacy/test_layout.py::", "privacy/test_discrete.py::"
SPREAD = NOISE + "test_spread_of_every_tensor"
UNITS = ENGINE + "test_noise_is_in_units_of_what_one_example_can_add"
ON = "privacy/test_goes_on.py::"
RUN = ENGINE + "test_a_run_is_the_formula"

MUTANTS = [
    Mutant("one and a half hundredths less "
           "noise", "privacy/noise/gaussian.py", ".mul_(self.mechanism.std)",
           ".mul_(0.985 * self.mechanism.std)", (SPREAD, )),
    Mutant("noise without the clip "
           "bound", "privacy/noise/mechanism.py", "return self.gradient_multiplier * self.bound * "
           "(1 +", "return self.gradient_multiplier * (1 +", (UNITS, )),
    Mutant("sigma / sqrt(W), "
           "W = 2", "privacy/noise/mechanism.py", "return self.gradient_multiplier * self.bound * "
           "(1 +", "return self.gradient_multiplier * self.bound / math.sqrt(2) * (1 +", (UNITS, )),
    Mutant("rounding is not in the "
           "bound", "privacy/noise/mechanism.py", '"clip.sensitivity") * (1 + SLACK))',
           '"clip.sensitivity") * 1)', (UNITS, )),
    Mutant("replacing one counts as "
           "adding one", "privacy/noise/mechanism.py", '(2 if self.relation == "replace" else 1)',
           '(1 if self.relation == "replace" else 1)', (UNITS, )),
    Mutant("the adaptive count is not accounted for", "privacy/noise/mechanism.py",
           "return (self.noise_multiplier**-2 - (2 * self.count_std) ** -2) ** "
           "-0.5", "return self.noise_multiplier",
           (ENGINE + "test_adaptive_clipping_follows_its_quantile_and_is_accounted_for", )),
    Mutant("the adaptive count has no "
           "noise", "privacy/noise/gaussian.py", "(centred + self.mechanism.count_std * float(z))",
           "(centred + 0 * float(z))", (NOISE + "test_the_count_query_has_its_noise", )),
    Mutant(
        "no noise on the last "
        "tensor", "privacy/noise/gaussian.py", "= self._noised(draw(item, start + a, start + b), "
        "total[a:b])", "= self._noised(draw(item, start + a, start + b), total[a:b]) "
        "if item + 1 < len(flat) else "
        "total[a:b].double() / self.mechanism.divisor", (SPREAD, )),
    Mutant("one stream for all "
           "tensors", "privacy/noise/gaussian.py", "self._noised(draw(item, start + a, ",
           "self._noised(draw(0, start + a, ",
           (PROMISE + "test_tensors_and_generations_have_noise_of_their_own", )),
    Mutant("one stream for all "
           "steps", "privacy/noise/gaussian.py", "draw = self._drawer(streams, step, ",
           "draw = self._drawer(streams, 0, ", (NOISE + "test_steps_differ_pairwise", )),
    Mutant("each part has the noise of the "
           "first", "privacy/noise/normal.py", "self._step, item, origin)", "self._step, item, 0)",
           (LAYOUT + "test_parts_drawn_apart_are_the_whole_drawn_together", )),
    Mutant("a block's later candidates are its "
           "first", "privacy/noise/discrete.py", "block * RESERVED + WORDS * tried)",
           "block * RESERVED)", (DISCRETE + "test_small_sigmas_by_chi_square", )),
    Mutant("radius and angle share their bits", "privacy/noise/normal.py",
           "np.copyto(a, words[1::2])", "np.copyto(a, words[::2])", (SPREAD, )),
    Mutant("coins in doubt are left to "
           "float64", "privacy/noise/discrete.py", "np.flatnonzero(surplus <= DOUBTFUL)",
           "np.flatnonzero(surplus "
           "< 0)", (DISCRETE + "test_doubtful_coins_are_tossed_with_all_digits", )),
    Mutant("minus nought counts", "privacy/noise/discrete.py", "accepted &= (value != 0) | (low "
           ">= 0)", "pass", (DISCRETE + "test_small_sigmas_by_chi_square", )),
    Mutant("noise of a resumed step is that of the first", "privacy/noise/gaussian.py",
           'return self.secret.streams("noise", generation)',
           'return self.secret.streams("noise", 0)',
           (PROMISE + "test_tensors_and_generations_have_noise_of_their_own", )),
    Mutant("noise may be asked for "
           "twice", "privacy/noise/gaussian.py", "if (generation, step) <= "
           "self._last[what]:", "if False:", (NOISE + "test_noise_is_given_once", )),
    Mutant("float32 tails", "privacy/noise/normal.py", "r += 0.5", "r += 2.0**39",
           (NOISE + "test_tails_are_not_cut", )),
    Mutant("global seeds reach the "
           "secret", "privacy/noise/streams.py", "secrets.token_bytes(SECRET_BYTES) if",
           "np.random.bytes(SECRET_BYTES) if", (NOISE + "test_no_global_seed_reaches_the_noise", )),
    Mutant("one key for all "
           "generations", "privacy/noise/streams.py", 'f"fxperex {purpose} '
           '{generation}"', 'f"fxperex {purpose}"',
           ("privacy/test_streams.py::test_step_and_item_are_the_nonce", )),
    Mutant("the grid of the discrete noise is "
           "left", "privacy/noise/gaussian.py", ".add_(total.double().div(grid).round_())",
           ".add_(total.double().div(grid))", (NOISE + "test_discrete_release_lies_on_the_grid", )),
    Mutant("half the discrete "
           "noise", "privacy/noise/gaussian.py", "Integers(self.mechanism.std / "
           "self.mechanism.grid,", "Integers(self.mechanism.std / self.mechanism.grid / 2,",
           (SPREAD, )),
    Mutant(
        "the actual batch size divides", "privacy/release.py",
        "means = self.noise.release_parts(totals.parts, step.step, step.generation)",
        "means = [m * self.noise.mechanism.divisor / max(len(step.result.norms), 1)"
        " for m in self.noise.release_parts(totals.parts, step.step, step.generation)]", (RUN, )),
    Mutant(
        "an empty batch is skipped", "privacy/engine.py", "totals = self._releases.record(step)",
        "if not len(step.result.norms):\n            self.steps_done += 1\n            "
        "return\n        totals = self._releases.record(step)",
        (ENGINE + "test_empty_batches_are_steps_with_noise", )),
    Mutant("a replayed sum may "
           "differ", "privacy/release.py", "elif not hmac.compare_digest(recorded, "
           "digest):", "elif False:",
           (FAULTS + "test_a_sum_that_differs_is_drawn_afresh_and_paid_again", )),
    Mutant("the sum's hash has "
           "no key", "privacy/release.py", 'key = self.noise.secret.key("sum", step.generation)',
           'key = b""',
           (PROMISE + "test_the_ledger_does_not_give_the_sum_away", )),
    Mutant("a changed clip bound is not seen", "privacy/noise/mechanism.py",
           "if clip is not self.clip or not self.holds:", "if False:",
           (ENGINE + "test_a_changed_bound_is_refused", )),
    Mutant("a transaction keeps "
           "its sum", "privacy/logical_step.py", 'self._state, self.sums = "closed", None',
           'self._state = "closed"', (ENGINE + "test_leaving_a_step_early_clears_its_sum", )),
    Mutant("only the last part is "
           "released", "privacy/logical_step.py", "self.sums = list(sums) if self.sums is None "
           "else [", "self.sums = list(sums) if self.sums is None or True else [", (RUN, )),
    Mutant("parts may be missing", "privacy/logical_step.py",
           "if self._count != self._expected or self.sums is None:", "if False:",
           (ENGINE + "test_leaving_a_step_early_clears_its_sum", )),
    Mutant("the optimizer steps on "
           "anything", "privacy/gate.py", "        if not ours:", "        if False:",
           (ENGINE + "test_the_optimizer_takes_only_what_was_released", )),
    Mutant("parameters outside the step are not "
           "seen", "privacy/gate.py", "if missing or extra:", "if False:",
           (ENGINE + "test_wrong_optimizers_are_refused", )),
    Mutant("no debit", "privacy/records/spending.py", "self._units = "
           "units", "self._units = self._units", (RUN, )),
    Mutant("the debit is not written down", "privacy/records/spending.py",
           'self.ledger.append("begin", step=step, generation=generation)', "pass",
           (PROMISE + "test_the_debit_is_on_disk_before_data_is_read",
            "privacy/test_kills.py::test_kill_9_at_every_point")),
    Mutant("a step costs nothing", "privacy/records/spending.py",
           "return self._units + after - before", "return self._units", (RUN, )),
    Mutant("a resumed step has no debit of its own", "privacy/records/spending.py",
           "return max(self._spans, default=-1) + 1", "return max(self._spans, default=0)",
           (FAULTS + "test_a_sum_that_differs_is_drawn_afresh_and_paid_again", )),
    Mutant("float32 rate", "privacy/sampling/poisson.py", "math.floor(self.expected_batch / "
           "self.size * UNIT)",
           "math.floor(float(np.float32(self.expected_batch / self.size)) * UNIT)",
           (SAMPLING + "test_rate_is_the_realised_threshold", )),
    Mutant("float32 coins", "privacy/sampling/poisson.py", "np.flatnonzero(bits <= "
           "np.uint64(self.threshold - 1))",
           "np.flatnonzero((bits >> np.uint64(40)) <= np.uint64((self.threshold - 1) >> 40))",
           (PROMISE + "test_the_threshold_is_met_to_the_last_bit", )),
    Mutant(
        "shuffled batches are taken for sampled ones", "privacy/sampling/shuffled.py",
        'return needed("dp_accounting").GaussianDpEvent(sigma)',
        'return needed("dp_accounting").PoissonSampledDpEvent(self.batch / self.size, '
        'needed("dp_accounting").GaussianDpEvent(sigma))',
        (PROMISE + "test_shuffled_batches_cost_an_epoch_of_gaussian", )),
    Mutant("an epoch begun is free", "privacy/sampling/shuffled.py",
           "return final // self.per_epoch - first // self.per_epoch + 1 if steps "
           "else 0", "return steps // self.per_epoch",
           (PROMISE + "test_shuffled_batches_cost_an_epoch_of_gaussian", )),
    Mutant(
        "truncation is not accounted for", "privacy/sampling/poisson.py",
        'return needed("dp_accounting").TruncatedSubsampledGaussianDpEvent(self.size, '
        'self.rate, self.max_batch, sigma)', "return super().event(sigma)",
        (PROMISE + "test_cutting_batches_down_costs_more", )),
    Mutant("epsilon at another delta", "privacy/accountant.py", "count).get_epsilon(delta)",
           "count).get_epsilon(math.sqrt(delta))",
           (ACCOUNT + "test_without_sampling_it_is_the_gaussian_mechanism", )),
    Mutant("one step is accounted for", "privacy/accountant.py", "account.compose(event, "
           "count)", "account.compose(event, 1)",
           (ACCOUNT + "test_without_sampling_it_is_the_gaussian_mechanism", )),
    Mutant("the relation is not "
           "accounted for", "privacy/accountant.py", "NeighboringRelation[RELATIONS[relation]]",
           'NeighboringRelation["ADD_OR_REMOVE_ONE"]',
           (PROMISE + "test_replacing_costs_more_than_adding", )),
    Mutant("one step over the budget", "privacy/calibration.py",
           "bisect.bisect_left(range(most), True, key=over) - 1",
           "bisect.bisect_left(range(most), True, "
           "key=over)", (ENGINE + "test_a_budget_stops_before_data_is_read", )),
    Mutant("the ledger is not "
           "synced", "privacy/records/ledger.py", "            if sync:", "            if False:",
           (PROMISE + "test_the_debit_is_on_disk_before_data_is_read", )),
    Mutant("lines of the ledger are not "
           "checked", "privacy/records/ledger.py", "good = hmac.compare_digest(record[\"mac\"],",
           "good = True or "
           "hmac.compare_digest(record[\"mac\"],",
           (PROMISE + "test_lines_of_another_history_do_not_fit", )),
    Mutant("lines of the ledger are not "
           "chained", "privacy/records/ledger.py", "(self.head + json.dumps(record, "
           "sort_keys=True))", "json.dumps(record, "
           "sort_keys=True)", (PROMISE + "test_lines_of_another_history_do_not_fit", )),
    Mutant("a checkpoint's MAC is not "
           "checked", "privacy/records/checkpoint.py", "if not hmac.compare_digest(",
           "if False and not hmac.compare_digest(", (FOLDER + "test_a_pickle_is_not_run", )),
    Mutant("an older checkpoint is "
           "taken", "privacy/records/folder.py", "if newest < recorded:", "if False:",
           (FOLDER + "test_an_older_checkpoint_is_rolled_back", )),
    Mutant("a ledger older than its checkpoint is taken", "privacy/records/folder.py",
           'if not self.ledger.has(**state["ledger"]):', "if False:",
           (FOLDER + "test_a_ledger_older_than_its_checkpoint_is_rolled_back", )),
    Mutant("what was never handed out is added", "privacy/parts.py",
           "if same and all(x is y for x, y in zip(ticket.part, tensors, strict=True)):",
           "if same:",
           (ON + "test_only_what_was_handed_out_is_added", )),
    Mutant("a part is added "
           "twice", "privacy/parts.py", "self._tickets.remove(self._ticket(batch))", "pass",
           (ON + "test_only_what_was_handed_out_is_added", )),
    Mutant("a part may be written to", "privacy/parts.py",
           "if self._ticket(batch).versions != _versions(leaves(batch)):", "if False:",
           (ON + "test_only_what_was_handed_out_is_added", )),
    Mutant("an augmentation sees all rows of a part", "privacy/parts.py",
           "rows = [each(*one_row(batch, i)) for i in range(length(batch))]",
           "rows = [each(*batch)]", (ON + "test_an_augmentation_sees_one_row_at_a_time", )),
    Mutant("one bad row takes the whole part along", "privacy/logical_step.py",
           "for i in range(length(batch)):\n            try:", "for i in ():\n            try:",
           (ON + "test_a_row_that_always_fails_is_left_out_by_a_recorded_act", )),
    Mutant("what was left out is not recorded", "privacy/records/spending.py",
           'self.ledger.append("leave out", step=step, generation=generation)', "pass",
           (ON + "test_a_row_is_left_out_again_in_a_replay", )),
    Mutant("rows are left out without a failure", "privacy/engine.py",
           "if self._failed != (self.steps_done, self.generation):", "if False:",
           (ON + "test_only_a_step_that_failed_leaves_rows_out", )),
    Mutant("two engines share an optimizer", "privacy/gate.py", "if optimizer in _gated:",
           "if False:", (ON + "test_a_second_engine_waits_for_the_first_to_close", )),
    Mutant("an empty batch is filled with "
           "zeros", "runtime/batches.py", "    if len(batch[0]):\n        return tuple(",
           "    if False:\n        return tuple(",
           (ON + "test_labels_and_ids_from_one_survive_empty_draws", )),
    Mutant("delta is not bound", "privacy/records/facts.py", '"target": {"delta": settings.delta, ',
           '"target": {', (FOLDER + "test_another_run_is_named", )),
    Mutant("a secret for all to read", "privacy/records/folder.py", "if others_may_read(mode):",
           "if False:",
           (FOLDER + "test_a_secret_that_others_can_read_is_refused", )),
    Mutant("a loaded step feeds an engine", "privacy/settings.py",
           "if isinstance(private, LoadedStep) or not private.proved:",
           "if False:", ("privacy/test_refusals.py::test_is_refused_before_anything_is_spent", )),
    Mutant("the coarse grid's noise is returned", "privacy/calibration.py",
           "return _root(excess, low, high) if low < high and excess(low) > 0 else low",
           "return high", (ACCOUNT + "test_no_noise_is_given_away", )),
]
