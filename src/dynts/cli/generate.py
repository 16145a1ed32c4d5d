"""`dynts generate`: answer questions with a model under a KV cache budget."""

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from dynts.cli.checks import check_chat, load_session, resolve
from dynts.cli.console import load_libraries, show
from dynts.config import MethodOptions, ModelSource, Sampling
from dynts.options import option, part


@dataclass(kw_only=True)
class GenerateCommand:
    """What `dynts generate` is given."""

    question: str | None = option(None, positional=True, help="The question, or - to read it from standard input.")
    source: ModelSource = part()
    questions: Path | None = option(
        None, help="Instead of a question: JSON Lines with `question` and an optional `id`."
    )
    method: MethodOptions = part()
    sampling: Sampling = part()
    json: bool = option(False, switch=True, help="Print one JSON object per question and nothing else.")

    def asked(self) -> list[tuple[str, str]]:
        """Return ids and texts of the questions.

        Raises:
            DyntsError: there is none, or what is there is no text.
        """
        from dynts.decode.answers import read_questions
        from dynts.errors import DyntsError, check_text

        if self.questions is not None:
            return read_questions(self.questions)
        try:
            text = sys.stdin.read() if self.question == "-" else str(self.question)
        except UnicodeDecodeError as error:
            raise DyntsError(f"standard input is no text: {error}; give it in UTF-8") from error
        check_text("the question", text)
        if not text.strip():
            raise DyntsError("the question is empty")
        return [("question", text)]


def generate(given: GenerateCommand) -> None:
    """Answer a question while the KV cache stays within a budget; print the text, then what it cost."""
    load_libraries("dynts.decode.answers")

    from dynts.decode.answers import answer_questions
    from dynts.decode.sampling import NOT_FINITE
    from dynts.errors import DyntsError
    from dynts.store.progress import Bar, bar

    if (given.question is None) == (given.questions is None):
        raise DyntsError("give either a question (or - for standard input) or --questions FILE")
    arm = resolve(given.method)
    asked = given.asked()
    check_chat(given.source)
    failed = []
    session, _, tokenizer = load_session(given.source, arm)
    with session:
        answers = answer_questions(session, tokenizer, asked, given.sampling, given.source.chat, stream=not given.json)
        # text that streams is progress enough
        with bar("answering", len(asked)) if given.json else nullcontext(Bar()) as shown:
            for answer in answers:
                show(answer.to_json() if given.json else f"\n{answer.describe()}")
                failed += [answer.id] * answer.failed
                shown.advance()
    if failed:
        raise DyntsError(f"{len(failed)} of {len(asked)} answers broke off ({', '.join(failed)}): {NOT_FINITE}")
