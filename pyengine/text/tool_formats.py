"""How families of models write calls of tools, as data. To add a family, add an entry.

A format is found from the chat template that the checkpoint brings: a template that teaches a model to call tools
contains the marks that the model then writes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolFormat:
    """The text around calls; a call itself is a JSON object with a name and arguments.

    Attributes:
        name: for logs.
        signs: a chat template of this family contains all of them.
        begin: text before a call, or before a list of calls.
        end: text after a call; "" when the call's JSON ends it.
        arguments_keys: how the object names the arguments.
        is_list: a JSON array of calls may follow ``begin``.
        bare: an answer that begins with ``{`` is a call without ``begin``, if it names a tool that exists.
        separator: may stand between bare calls.
        holds_several: an answer may have more than one call. Llama 3's templates refuse a history with such answers,
            though what its models write is read all the same.
        call_id_chars: length of a call's id that the template demands; 0: any.
    """

    name: str
    signs: tuple[str, ...]
    begin: str
    end: str = ""
    arguments_keys: tuple[str, ...] = ("arguments", "parameters")
    is_list: bool = False
    bare: bool = False
    separator: str = ""
    holds_several: bool = True
    call_id_chars: int = 0

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.begin, self.end) if self.end else (self.begin,)


FORMATS = (
    ToolFormat("hermes", signs=("<tool_call>",), begin="<tool_call>", end="</tool_call>"),
    ToolFormat("mistral", signs=("[TOOL_CALLS]",), begin="[TOOL_CALLS]", is_list=True, call_id_chars=9),
    ToolFormat(
        "llama3_json",
        signs=("<|start_header_id|>", "parameters"),
        begin="<|python_tag|>",
        bare=True,
        separator=";",
        holds_several=False,
    ),
)


def find_tool_format(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; None when it has no place for tools or an unknown one.

    Templates of another family that speak ``<tool_call>`` but no JSON (XML elements inside) are not Hermes'.
    """
    if "tools" not in template or "<function=" in template or "<arg_key>" in template:
        return None
    return next((each for each in FORMATS if all(sign in template for sign in each.signs)), None)
