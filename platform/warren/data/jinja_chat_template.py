"""The template `native`: the chat template of the language model's own tokenizer.

Bunny trains every backbone on one prompt of its own. To keep the style of a chat model, train on the Jinja template of
its tokenizer instead. The text is rendered turn by turn, so the text that an answer adds is known. Labels follow the
same rule as with other templates: the answer and the eos after it are supervised, nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from warren.compat.transformers_chat import render_chat_template
from warren.data.sample import Turn
from warren.data.template import Segment
from warren.errors import ConfigError

NATIVE = "native"
_A_DATE = "26 Jul 2024"  # Llama 3.1's template asks for today's; a prompt must not depend on the day


@dataclass(frozen=True)
class NativeTemplate:
    """Renders turns with a Jinja chat template; it has the methods of `Template`.

    Attributes:
        source: The template's text. It is run in Jinja's sandbox.
    """

    source: str

    def check_eos(self, eos: str) -> None:
        """Refuse a template whose answers do not end with the model's eos.

        Raises:
            ConfigError: They do not, or the template cannot be rendered.
        """
        self.training((Turn("user", "a"), Turn("assistant", "b")), eos)

    def training(self, turns: Sequence[Turn], eos: str, system: str | None = None) -> list[Segment]:
        """Render a whole conversation; every answer and its end is supervised.

        Raises:
            ConfigError: The template writes earlier turns anew when a turn is added, or ends answers otherwise.
        """
        return self._segments(list(turns), eos, system)

    def generation(self, turns: Sequence[Turn], eos: str, system: str | None = None) -> list[Segment]:
        """Render a conversation that the assistant is to continue."""
        return self._segments(list(turns), eos, system)

    def _segments(self, turns: list[Turn], eos: str, system: str | None) -> list[Segment]:
        segments: list[Segment] = []
        done = ""
        for number, turn in enumerate(turns):
            asked = turn.role == "user"
            text = self._render(turns[: number + 1], system, open_answer=asked)
            added = text.removeprefix(done)
            if not text.startswith(done):
                raise ConfigError("the chat template writes earlier turns anew when one is added: train on 'bunny'")
            if asked:
                segments.append(Segment(added, False))
            else:
                answer, ending, rest = added.rpartition(eos)
                if not ending:
                    raise ConfigError(
                        f"the chat template ends answers with {added[-20:]!r}, the model's eos is {eos!r}"
                    )
                segments += [Segment(answer + eos, True), Segment(rest, False)]
            done = text
        return segments

    def _render(self, turns: Sequence[Turn], system: str | None, open_answer: bool) -> str:
        from jinja2 import TemplateError  # late: only this template needs it

        messages = [{"role": "system", "content": system}] if system is not None else []
        messages += [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            # `encode` puts the BOS id in front, so the template must not write the token as text.
            return render_chat_template(self.source, messages, open_answer, bos_token="", date=_A_DATE)
        except TemplateError as error:
            raise ConfigError(f"the model's chat template cannot be rendered: {error}") from None
