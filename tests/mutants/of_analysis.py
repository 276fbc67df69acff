"""Mutants of the batch-axis proof, the losses and the sites: what mixes examples is accepted."""

from __future__ import annotations

from mutant import Mutant

MIXING = "analysis/test_batch_axis.py::test_mixing_is_refused_with_op_and_line"
MODULES = "analysis/test_batch_axis.py::test_mixing_modules_are_refused"
PROMISE = "privacy/test_promises.py::"
RULE = "analysis/test_rules.py::test_the_rule_agrees_with_perturbation"

MUTANTS = [
    Mutant("softmax over the batch is accepted", "analysis/rules/reduce.py",
           'drop(context, context.axis("self"), context.arg("dim"), True, '
           '"runs")', 'context.axis("self")',
           (MIXING + "[softmax]", MIXING + "[cumsum]")),
    Mutant("sorting the batch is accepted", "analysis/rules/reduce.py",
           'drop(context, context.axis("self"), context.arg("dim"), True, '
           '"orders")', 'context.axis("self")',
           (MIXING + "[sort]",)),
    Mutant("rolling and flipping the batch are accepted", "analysis/rules/view.py",
           "if axis is not None and (not dims or "
           "axis.dim in", "if False and (not dims or axis.dim in",
           (MIXING + "[roll]", MIXING + "[flip]")),
    Mutant("examples in another order inside a dimension are accepted", "analysis/state.py",
           "if one.place == "
           "two.place:", "if one.dim == "
                         "two.dim:", (PROMISE + "test_examples_in_another_order_do_not_meet",)),
    Mutant("normalising over the batch is accepted", "analysis/rules/layers.py",
           "if axis is not None and axis.dim >= rank - "
           "below:", "if False:", (RULE + "[layer_norm]", RULE + "[group_norm]")),
    Mutant("batch normalisation in training mode is accepted", "analysis/rules/layers.py",
           'if not evaluates and context.arg("training?", True):', "if False:",
           (MODULES, MIXING + "[functional batch norm]")),
    Mutant("attention over the batch is accepted", "analysis/rules/layers.py",
           "if any(a is not None and a.dim >= rank - 2 for a in axes):", "if False:",
           (MIXING + "[attention over batch, transposed]", MIXING + "[attention over batch]")),
    Mutant("buffers may keep batch statistics", "analysis/batch_axis.py",
           "if isinstance(value, fx.Node) and states.get(value) is not None:", "if False:",
           (PROMISE + "test_a_buffer_that_remembers_the_batch_is_refused",)),
    Mutant("any index of the batch dimension is accepted", "analysis/rules/index.py",
           "if rows is None or not rows.rows or base", "if rows is None or base",
           (PROMISE + "test_rows_of_other_examples_are_refused",)),
    Mutant("gathering along the batch is accepted", "analysis/rules/index.py",
           "if any(a is not None and a.dim == along for a in (base, chosen)):", "if False:",
           (MIXING + "[gather]", RULE + "[gather]")),
    Mutant("scale_grad_by_freq is "
           "accepted", "analysis/rules/index.py", 'if context.arg("scale_grad_by_freq"):',
           "if False:", (MODULES,)),
    Mutant("an operation without a rule is taken for pointwise", "analysis/batch_axis.py",
           '    raise Mixes("this library has no batch rule for it',
           '    return RULES["pointwise"]\n    raise Mixes("this library has no batch rule for it',
           (PROMISE + "test_an_operation_without_a_rule_is_refused",)),
    Mutant("class weights are divided by once more", "analysis/losses.py",
           "(aten.index.Tensor, (self.copies[weight], [ids])), counted))",
           "(aten.index.Tensor, (self.copies[weight], [ids])), 1))",
           ("analysis/test_losses.py::test_a_coupling_normaliser_becomes_the_examples_own",
           PROMISE + "test_weights_with_ignored_positions_are_the_examples_own")),
    Mutant("isometry is not "
           "checked", "analysis/sites.py", "origin.isometric and real, True,", "True, True,",
           ("test_runtime.py::test_shared_and_derived_weights",)),
    Mutant("every site is alone on its "
           "parameter", "analysis/sites.py", "return not pieces or (", "return True or (",
           (PROMISE + "test_a_parameter_and_a_piece_of_it_have_one_norm",)),
    Mutant("what a parameter enters counts as rows that are all alike", "analysis/batch_axis.py",
           "return settled(state) if context.site else state", "return state",
           ("analysis/test_attacks.py::test_an_attack_is_refused_at_its_line[expanded_parameter]",
            "analysis/test_attacks.py::test_an_attack_is_refused_at_its_line[product_of_ones]")),
    Mutant("a pattern that repeats counts as rows that are all "
           "alike", "analysis/rules/pointwise.py",
           "fresh=size == 1)", "fresh=True)",
           ("analysis/test_attacks.py::test_an_attack_is_refused_at_its_line[repeated_times]",)),
    Mutant("constants of the batch size are accepted", "capture/refusals.py",
           "if twin is None or not _equal(value, twin):", "if twin is None:",
           ("test_unwatched.py::test_a_constant_that_holds_the_batch_size_is_refused",)),
]
