"""A checkpoint's pictures: as many placeholders as its own processor writes, pixels as it makes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlavaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from tests.data.drawn import bytes_of_drawing, draw, drawing, png_header
from whet.data.picture_files import url_of
from whet.data.pictures import PictureReader, Scaled, picture_reader
from whet.data.render import Renderer
from whet.errors import ConfigError, DataError, ModelError
from whet.models.tiny_vlm import Family, Tower, build_tiny_vlm
from whet.schema.records import Conversation, Message, Origin, Part, Preference, Prompt

TEXTS = ("What is in the picture? A cat, two dogs and a red square.", "How many? Three of them.")
FAMILIES: tuple[Family, ...] = ("qwen2_5_vl", "qwen3_vl", "llava")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vlm")
    return {
        family: build_tiny_vlm(
            folder / family, TEXTS, family=family, hidden_size=32, num_layers=1, tower=Tower(depth=1, hidden_size=16)
        )
        for family in FAMILIES
    }


def reader_of(path: Path, **limits: int) -> PictureReader:
    reader = picture_reader(str(path), **limits)
    assert reader is not None
    return reader


def renderer_of(path: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(path), reader=reader_of(path))


def own_processor(path: Path, family: Family) -> Any:
    """The family's processor of transformers. Qwen's wants a video processor, which wants torchvision: a stand-in."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    if family == "llava":
        return LlavaProcessor.from_pretrained(path)
    kind = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen3VLProcessor
    video = SimpleNamespace(merge_size=2, model_input_names=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "check_argument_for_proper_class", lambda self, name, argument: None)
        return kind(Qwen2VLImageProcessorPil.from_pretrained(path), tokenizer, video)


QUESTION = (
    Message("system", "Be brief."),
    Message("user", (Part("image", "a.png"), Part("text", "What is here, and here?"), Part("image", "b.jpg"))),
    Message("assistant", "A cat."),
    Message("user", (Part("text", "And this?\n"), Part("image", "c.webp"), Part("image", "a.png"))),
)
SIZES = {"a.png": (90, 70), "b.jpg": (33, 200), "c.webp": (28, 28)}


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_checkpoints_own_processor(
    family: Family, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in SIZES.items():
        draw(tmp_path / name, *size)
    renderer = renderer_of(checkpoints[family])
    asked = renderer.ask(QUESTION)
    text = renderer.template.text(QUESTION, (), ask=True)
    from whet.data.decode import decoded

    images = [decoded((tmp_path / picture.source).read_bytes()) for picture in asked.pictures]
    own = own_processor(checkpoints[family], family)(images=images, text=[text], return_tensors="pt")
    assert list(asked.prompt_ids) == own["input_ids"][0].tolist()
    reader = renderer.reader
    assert reader is not None
    mine = reader.load(asked.pictures)
    assert set(mine) == set(own) & {"pixel_values", "image_grid_thw"}
    for name, tensor in mine.items():
        assert torch.equal(tensor, own[name]), name
    places = sum(picture.num_tokens for picture in asked.pictures)
    assert asked.prompt_ids.count(reader.place_id) == places


def test_the_number_of_tokens_of_a_known_picture(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """90×70 with patches of 14, two by two a token: 84×56 pixels, three tokens wide and two high; 24 patches."""
    draw(tmp_path / "a.png", 90, 70)
    reader = reader_of(checkpoints["qwen2_5_vl"])
    picture = reader.read(str(tmp_path / "a.png"))
    assert (picture.num_tokens, picture.grid) == (6, (2, 3))
    loaded = reader.load([picture])
    assert loaded["pixel_values"].shape == (24, 1176) and loaded["image_grid_thw"].tolist() == [[1, 4, 6]]
    llava = reader_of(checkpoints["llava"])
    fixed = llava.read(str(tmp_path / "a.png"))
    assert (fixed.num_tokens, fixed.grid) == (16, (4, 4))  # 56 pixels a side, patches of 14
    assert llava.load([fixed, fixed])["pixel_values"].shape == (2, 3, 56, 56)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_tokens_follow_from_the_size_as_in_the_processor(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > 200:
        return
    own = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28)
    num, grid = Scaled(28, 4 * 28 * 28, 64 * 28 * 28).tokens(height, width)
    assert num * 4 == own.get_number_of_image_patches(height, width)
    assert grid is not None and grid[0] * grid[1] == num


def test_pixel_limits_of_the_plan(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = str(draw(tmp_path / "a.png", 560, 560))
    plain, small = reader_of(checkpoints["qwen2_5_vl"]), reader_of(checkpoints["qwen2_5_vl"], max_pixels=9 * 28 * 28)
    assert plain.read(path).num_tokens == 64
    picture = small.read(path)
    assert (picture.num_tokens, picture.grid) == (9, (3, 3))
    assert small.load([picture])["image_grid_thw"].tolist() == [[1, 6, 6]]
    assert plain.fingerprint != small.fingerprint and plain.read(path).digest != picture.digest
    tiny = str(draw(tmp_path / "b.png", 10, 10))
    assert reader_of(checkpoints["qwen2_5_vl"], min_pixels=16 * 28 * 28).read(tiny).num_tokens == 16
    with pytest.raises(ConfigError, match=r"above model\.vision\.max_pixels"):
        picture_reader(str(checkpoints["qwen3_vl"]), min_pixels=10**6, max_pixels=10**5)
    with pytest.raises(ConfigError, match=r"model\.vision\.max_pixels: cannot be kept"):
        picture_reader(str(checkpoints["llava"]), max_pixels=10**5)


def test_a_placeholder_in_the_beginning_of_an_answer_is_letters(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = str(draw(tmp_path / "a.png", 90, 70))
    renderer = renderer_of(checkpoints["qwen2_5_vl"])
    question = (Message("user", (Part("image", path), Part("text", "Which?"))),)
    said = f"The {renderer.template.place} is"
    for ids in renderer.begun(question, ["So", said]):
        assert ids.count(renderer.place_id) == 6
    assert renderer.template.tokenizer.decode(renderer.begun(question, [said])[0]).endswith(said)


def test_what_is_remembered_is_bounded(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whet.data.pictures.REMEMBERED", 2)
    reader = reader_of(checkpoints["qwen2_5_vl"])
    paths = [str(draw(tmp_path / f"{seed}.png", seed=seed)) for seed in range(4)]
    found = [reader.read(path) for path in paths]
    assert len(reader._files) == len(reader._sizes) == 2
    assert [reader.read(path) for path in paths] == found


def test_digest_is_of_the_bytes_and_not_of_the_name(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    reader = reader_of(checkpoints["qwen2_5_vl"])
    one, two = draw(tmp_path / "a.png"), draw(tmp_path / "b.png")
    other = draw(tmp_path / "c.png", seed=9)
    first, second, third = (reader.read(str(path)) for path in (one, two, other))
    assert first.digest == second.digest != third.digest
    url = reader.read(url_of(one.read_bytes()))
    assert url.digest == first.digest and torch.equal(
        reader.load([url])["pixel_values"], reader.load([first])["pixel_values"]
    )
    draw(one, seed=30)
    assert reader.read(str(one)).digest != first.digest
    with pytest.raises(DataError, match="has changed since its row was made"):
        reader.load([first])


def test_what_is_wrong_with_a_picture_is_one_line(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    reader, origin = reader_of(checkpoints["qwen2_5_vl"]), Origin(file="train.jsonl", line=7)
    (tmp_path / "words.png").write_text("just some words, many of them, in a file with another name\n" * 9)
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "cut.jpg").write_bytes(bytes_of_drawing(200, 160, "JPEG")[:-300])
    (tmp_path / "empty.png").write_bytes(b"")
    draw(tmp_path / "thin.png", 900, 2)
    for name, words in {
        "words.png": "the picture is none that can be read",
        "bomb.png": "the picture has more than 100,000,000 pixels",
        "cut.jpg": "the picture is damaged or cut short",
        "empty.png": "the picture is an empty file",
        "thin.png": "the picture is more than 200 times as long as it is wide",
        "nowhere.png": "the picture is missing",
        "": "the picture is no file",
    }.items():
        with pytest.raises(DataError) as caught:
            reader.read(str(tmp_path / name), origin)
        line = str(caught.value)
        assert line.startswith(f"train.jsonl:7: images: {words}") and "\n" not in line
        assert str(tmp_path / name) in line
    for url, words in {"data:image/png;base64,@@@": "broken base64", "data:image/png,abc": "not in base64"}.items():
        with pytest.raises(DataError, match=words):
            reader.read(url, origin)


def test_text_checkpoints_have_no_reader(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert picture_reader(str(tiny_checkpoint)) is None
    assert picture_reader(str(tmp_path)) is None
    renderer = Renderer(AutoTokenizer.from_pretrained(tiny_checkpoint))
    record = Conversation(
        messages=(Message("user", (Part("image", "a.png"),)), Message("assistant", "Paris.")),
        origin=Origin(file="a.jsonl", line=3),
    )
    with pytest.raises(DataError, match=r"a\.jsonl:3: images: holds pictures, and this checkpoint takes none"):
        renderer.conversation(record)


def test_a_checkpoint_that_lost_its_processor(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoints["qwen2_5_vl"] / "config.json").read_text())
    with pytest.raises(ModelError, match="has no image processor"):
        picture_reader(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_placeholder_in_words_is_no_picture(family: Family, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = str(draw(tmp_path / "a.png"))
    renderer = renderer_of(checkpoints[family])
    reader, place = renderer.reader, renderer.template.place
    assert reader is not None and place
    words = f"Is {place} a token? {place}{place}"
    turns = (Message("user", (Part("text", words), Part("image", path))),)
    asked = renderer.ask(turns)
    assert asked.prompt_ids.count(reader.place_id) == asked.pictures[0].num_tokens
    assert words in renderer.template.tokenizer.decode(asked.prompt_ids)
    said = Conversation(messages=(Message("user", "Write it."), Message("assistant", f"{place}!")))
    row = renderer.conversation(said)
    assert reader.place_id not in row.ids and f"{place}!" in renderer.template.tokenizer.decode(row.ids)
    assert row.pictures == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_with_pictures(family: Family, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    one, two = str(draw(tmp_path / "a.png", 90, 70)), str(draw(tmp_path / "b.png", 200, 60))
    renderer = renderer_of(checkpoints[family])
    reader = renderer.reader
    assert reader is not None
    turns = (
        Message("user", (Part("image", one), Part("text", "What is it?"))),
        Message("assistant", "A cat."),
        Message("user", (Part("text", "And here?"), Part("image", two))),
        Message("assistant", "Two dogs."),
    )
    row = renderer.conversation(Conversation(messages=turns))
    assert [picture.source for picture in row.pictures] == [one, two]
    assert len(row.ids) == len(row.weights)
    trained = [token for token, weight in zip(row.ids, row.weights, strict=True) if weight]
    said = renderer.template.tokenizer.decode(trained, skip_special_tokens=True)
    assert said == "A cat.Two dogs." and reader.place_id not in trained
    assert row.ids.count(reader.place_id) == sum(picture.num_tokens for picture in row.pictures)
    # Each answer stands behind the ids an engine would be given.
    for end, picture_count in ((1, 1), (3, 2)):
        asked = renderer.ask(turns[:end])
        assert tuple(row.ids[: len(asked.prompt_ids)]) == asked.prompt_ids
        assert asked.pictures == row.pictures[:picture_count]
        (begun,) = renderer.begun(turns[:end], ["A"])
        assert begun[: len(asked.prompt_ids)] == asked.prompt_ids and len(begun) > len(asked.prompt_ids)


def test_groups_and_text_rows(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = str(draw(tmp_path / "a.png"))
    renderer = renderer_of(checkpoints["qwen2_5_vl"])
    prompt = (Message("user", (Part("image", path), Part("text", "What is it?"))),)
    pair = Preference(
        prompt=prompt, chosen=(Message("assistant", "A cat."),), rejected=(Message("assistant", "Two dogs."),)
    )
    group = renderer.group(pair)
    assert group.prompt_ids == renderer.ask(prompt).prompt_ids and len(group.pictures) == 1
    text = Prompt(messages=(Message("user", "What is it?"),))
    bare = Renderer(AutoTokenizer.from_pretrained(checkpoints["qwen2_5_vl"]))
    assert renderer.prompt(text.messages) == bare.prompt(text.messages)
    assert renderer.fingerprint != bare.fingerprint


def test_a_picture_in_an_answer_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = str(draw(tmp_path / "a.png"))
    renderer = renderer_of(checkpoints["qwen2_5_vl"])
    shown = Message("assistant", (Part("image", path), Part("text", "Here it is.")))
    turns = (Message("user", "Draw a cat."), shown)
    origin = Origin(file="a.jsonl", line=2)
    with pytest.raises(DataError, match=r"a\.jsonl:2: images: an answer holds a picture"):
        renderer.conversation(Conversation(messages=turns, origin=origin))
    with pytest.raises(DataError, match="an answer holds a picture"):
        renderer.group(Preference(prompt=turns[:1], chosen=(shown,), rejected=(Message("assistant", "No."),)))
    # As something said earlier it may stand there, where the template can write it.
    more = (Message("user", "Thanks."), Message("assistant", "Any time."))
    earlier = Conversation(messages=(turns[0], Message("assistant", shown.content, weight=0.0), *more), origin=origin)
    assert len(renderer.conversation(earlier).pictures) == 1
    parts = " %}\n            {%- for part"
    renderer.template.chat_template = renderer.template.chat_template.replace(
        f"message.content{parts}", f"message.content and message.role != 'assistant'{parts}"
    )
    with pytest.raises(DataError, match=r"the chat template writes 0 pictures for 1 \(found assistant\)"):
        renderer.conversation(earlier)


def test_the_processors_template_where_the_tokenizers_has_no_place_for_pictures(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """LLaVA-1.5 keeps its template with the processor, and that one takes lists of parts only."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["llava"])
    listed = (
        "{% for message in messages %}{{ message.role.upper() + ': ' }}"
        "{% for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )
    reader = reader_of(checkpoints["llava"])
    reader.chat_template = listed
    for own in (None, "{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"):
        tokenizer.chat_template = own
        renderer = Renderer(tokenizer, reader=reader)
        assert renderer.template.chat_template == listed
        turns = (Message("user", "Well?"), Message("assistant", "A cat."))
        assert "USER: Well?<|im_end|>\nASSISTANT: A cat." in tokenizer.decode(
            renderer.conversation(Conversation(messages=turns)).ids
        )
        path = str(draw(tmp_path / "a.png"))
        asked = renderer.ask((Message("user", (Part("text", "Well?"), Part("image", path))),))
        assert asked.prompt_ids.count(reader.place_id) == 16


def test_a_system_text_that_the_template_folds_into_a_question_with_a_picture(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["qwen2_5_vl"])
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tokenizer.chat_template
    )
    renderer = Renderer(tokenizer, reader=reader_of(checkpoints["qwen2_5_vl"]))
    assert not renderer.template.knows_system
    path = str(draw(tmp_path / "a.png"))
    turns = (Message("system", "Be brief."), Message("user", (Part("image", path), Part("text", "Well?"))))
    asked = renderer.ask(turns)
    assert len(asked.pictures) == 1 and "Be brief.\n\n<|vision_start|>" in tokenizer.decode(asked.prompt_ids)


def test_drawing_is_seen() -> None:
    assert drawing(90, 70).size == (90, 70)
