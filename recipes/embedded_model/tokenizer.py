"""The embedded model's tokenizer: one token a word, built from the task's vocabulary."""

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dynts.chat.markers import END, START
from dynts.chat.prompts import INSTRUCTION
from dynts.tiny.task import VARIABLES

PAD, BEGIN, STOP, USER, ASSISTANT, UNKNOWN = "<pad>", "<begin>", "<stop>", "<user>", "<assistant>", "<unknown>"
_SPECIAL = (PAD, BEGIN, STOP, USER, ASSISTANT, UNKNOWN)
_WORDS = (
    *(f"{name}{suffix}" for name in VARIABLES for suffix in ("", "=", ":=", "?")),
    *"0123456789+-=,.?()",
    *("\\boxed{", "}", "find", "so", "swap", "back", "good", "wait", "maybe", "is", "wrong", "again", "keep", "it"),
    *("count", "fine", "hmm", "less", "than", "nothing", "odd", "here", "done"),
)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}<assistant> {{ message.content }} <stop>"
    "{% else %}<user> {{ message.content }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> <think>\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: words, variables (`a`, `a=`, `a:=`, `a?`), digits, signs, think markers and the chat
    template.

    The instruction that dynts adds to every question (`dynts.chat.prompts`) is one token, so that it costs one cache
    slot. Other text becomes `<unknown>`.
    """
    # the think markers and the instruction are text that may be decoded, the others are special
    tokens = (*_SPECIAL, START, END, INSTRUCTION, *_WORDS)
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    pattern = Regex(r"[a-z](?::=|=|\?)|[a-z]+|\\boxed\{|\S")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pattern, behavior="isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in (START, END, INSTRUCTION)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=STOP,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=_TEMPLATE,
        model_max_length=2048,
    )
