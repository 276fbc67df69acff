"""ModuleValidator: whether layers of a model mix examples, and a copy in which none does."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxperex.errors import BatchMixingError, ConfigError, FxperexError
from fxperex.fixes.fix import fix


class ModuleValidator:
    """Opacus' names for `fxperex.fix`.

    It looks at layers alone. Mixing in a forward or a loss is found by the first backward, which
    proves the whole program.
    """

    @classmethod
    def validate(cls, module: nn.Module, *, strict: bool = False) -> list[FxperexError]:
        """Returns what is wrong with the layers of `module`; an empty list if nothing is.

        strict: raises the first instead.
        """
        errors: list[FxperexError] = []
        if not module.training:
            errors.append(ConfigError("the model is in evaluation mode; call model.train()"))
        try:
            errors += [BatchMixingError(f"{change}. ModuleValidator.fix(model) returns a copy with "
                                        "this change") for change in fix(module)[1]]
        except FxperexError as error:
            errors.append(error)
        if strict and errors:
            raise errors[0]
        return errors

    @classmethod
    def is_valid(cls, module: nn.Module) -> bool:
        """Returns whether `validate` has nothing to say."""
        return not cls.validate(module)

    @classmethod
    def fix(cls, module: nn.Module, **kwargs: Any) -> nn.Module:
        """Returns a copy of `module` without layers that mix examples. Raises an FxperexError.

        Make the optimizer after it: parameters are copies.
        """
        if kwargs:
            raise ConfigError(f"fix takes the module alone; got {', '.join(kwargs)}")
        return fix(module)[0]

    @classmethod
    def fix_and_validate(cls, module: nn.Module, **kwargs: Any) -> nn.Module:
        """Returns `fix(module)`, validated. Raises an FxperexError."""
        fixed = cls.fix(module, **kwargs)
        cls.validate(fixed, strict=True)
        return fixed
