"""The templates, as data: what stands around the image tokens, and the question."""

from __future__ import annotations

from dataclasses import dataclass

from zeus_union.cache.errors import UserError

IMAGE = "{image}"
QUESTION_MARK = "{question}"

# Zeus, section 3.1.
QUESTION = (
    "Please analyze the given <instance> <modality> image and give as much important information in such a "
    "<modality> for segmenting <instance> as you can."
)


@dataclass(frozen=True)
class Template:
    """A conversation around one image.

    Attributes:
        name: as a profile calls it.
        text: the prompt with {image} once and {question} once.
        marker: what ends the answer; the text is cut there.
        answer_end: what a training target ends with, so that the model learns to stop.
        image_first: the image stands before the beginning-of-text token, not after it (BLIP-2).
    """

    name: str
    text: str
    marker: str
    answer_end: str
    image_first: bool = False

    def pieces(self, question: str) -> tuple[str, str]:
        """The text before and after the image tokens."""
        before, after = self.text.split(IMAGE)
        return before.replace(QUESTION_MARK, question), after.replace(QUESTION_MARK, question)

    def prompt(self, question: str) -> str:
        """The whole prompt as a person reads it, with <image> where the image tokens go."""
        return "<image>".join(self.pieces(question))


TEMPLATES: dict[str, Template] = {
    # Zeus, section 3.1: the system line belongs to ###Assistant, then "###Doctor: X_R X_Q ###Assistant: X_S".
    "zeus": Template(
        name="zeus",
        text=(
            "###Assistant: You are a helpful healthcare virtual assistant. ###Doctor: {image} {question} ###Assistant:"
        ),
        marker="###",
        answer_end=" ###",
    ),
    # XrayGPT's training prompt and chat (commit d0baa6a).
    "xraygpt": Template(
        name="xraygpt",
        text="###Patient: <Img>{image}</Img> {question} ###Doctor:",
        marker="###",
        answer_end=" ###",
    ),
    # BLIP-2's question answering prompt (Li et al. 2023, appendix; transformers' model card).
    "blip2": Template(
        name="blip2",
        text="{image}Question: {question} Answer:",
        marker="\n",
        answer_end="\n",
        image_first=True,
    ),
}


def template(name: str) -> Template:
    """The template of that name.

    Raises:
        UserError: there is none, naming those there are.
    """
    if name not in TEMPLATES:
        raise UserError(f"unknown template {name!r}; there are: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def question(instance: str, term: str) -> str:
    """The instruction's question (Zeus, section 3.1).

    Args:
        instance: what is to be segmented, e.g. 'brain tumour'.
        term: what the question calls the modality, e.g. 'MRI-T2'.
    """
    return QUESTION.replace("<instance>", instance).replace("<modality>", term)
