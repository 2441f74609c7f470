"""transformers' chat templates. It stands alone, as tasks that read data import it without torch."""

from collections.abc import Sequence


def render_chat_template(
    source: str, messages: Sequence[dict[str, str]], open_answer: bool, bos_token: str, date: str
) -> str:
    """Render a conversation with a Jinja chat template as transformers' tokenizers do, in Jinja's sandbox.

    Why: A tokenizer object would be needed otherwise, and takes seconds to import and load.
    Upstream: `render_jinja_template` in `transformers/utils/chat_template_utils.py` of transformers 5.23, which
        `PreTrainedTokenizerBase.apply_chat_template` calls.
    If it breaks: Call `apply_chat_template` on a `PreTrainedTokenizerFast` made of the tokenizer's file.

    Args:
        source: The template's text.
        messages: Each with `role` and `content`.
        open_answer: Begin the assistant's next turn.
        bos_token: What the template may write in front.
        date: What the template reads as today's.

    Raises:
        jinja2.TemplateError: The template cannot be rendered.
    """
    from transformers.utils.chat_template_utils import render_jinja_template  # late: it takes a second

    rendered, _ = render_jinja_template(
        conversations=[list(messages)],
        chat_template=source,
        add_generation_prompt=open_answer,
        bos_token=bos_token,
        date_string=date,
    )
    text: str = rendered[0]
    return text
