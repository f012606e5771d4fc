"""Pictures to text: what is drawn here is read back, whatever it was saved as."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lab3.errors import UsageError
from lab3.reports import ocr, ocr_model
from lab3.reports.lines import repaired
from lab3.reports.ocr_picture import load_pixels
from lab3.reports.ocr_skew import upright

MONO = Path("/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf")
SANS = MONO.with_name("DejaVuSans.ttf")
drawn = pytest.mark.skipif(not MONO.exists(), reason="needs the font DejaVu Sans Mono")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "cache"))


def terminal(lines, path, *, size=13, paper=(24, 24, 24), ink=(204, 204, 204)):
    font = ImageFont.truetype(str(MONO), size)
    picture = Image.new(
        "RGB", (int(max(map(len, lines)) * font.getlength("M")) + 16, len(lines) * (size + 4) + 8), paper
    )
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        pen.text((8, 4 + row * (size + 4)), line, font=font, fill=ink)
    picture.save(path)
    return path


@drawn
def test_a_small_dark_terminal_is_read_with_its_spaces_and_underscores(tmp_path):
    lines = ["(base) root@dev-7:~/model# du -sh *", "3.6G    internlm2_5-1_8b-chat", "37G     internlm2-chat-20b"]
    seen = ocr.recognise(terminal(lines, tmp_path / "a.png"), digest="a" * 64)
    assert [repaired(line.text).strip() for line in seen.lines] == lines


@drawn
def test_a_continued_command_keeps_its_marks_and_backslashes(tmp_path):
    lines = ["root@dev:~# lmdeploy serve api_server \\", ">     --quant-policy 4 \\", ">     --server-port 23333"]
    seen = ocr.recognise(terminal(lines, tmp_path / "a.png"), digest="b" * 64)
    assert [repaired(line.text).strip() for line in seen.lines] == lines


@drawn
def test_it_is_the_same_with_one_thread_and_with_two(tmp_path):
    path = terminal(["root@dev-7:~# nvidia-smi", "| 0  NVIDIA A100   11368MiB / 24566MiB |"], tmp_path / "a.png")
    seen = []
    for threads in (1, 2):
        ocr_model.use_threads(threads)
        ocr_model._models.cache_clear()
        seen.append(ocr._look(path, "a" * 64))
    assert seen[0] == seen[1]


@drawn
def test_words_lie_within_their_line(tmp_path):
    seen = ocr.recognise(terminal(["11368 MiB / 24566 MiB  used"], tmp_path / "a.png"), digest="c" * 64)
    (line,) = seen.lines
    assert [word.text for word in seen.pieces] == ["11368", "MiB", "/", "24566", "MiB", "used"]
    assert all(line.box[0] <= word.box[0] and word.box[2] <= line.box[2] for word in seen.pieces)


@drawn
@pytest.mark.parametrize("degrees", [-4, 7])
def test_a_photograph_that_leans_is_read_as_if_it_were_level(tmp_path, degrees):
    lines = ["wang@srv-2:~/models$ du -sh *", "1.5G    internlm2_5-1_8b-chat-awq", "3.6G    internlm2_5-1_8b-chat"]
    lines += ["wang@srv-2:~/models$ ls -lh", "drwxr-xr-x 2 wang wang 4.0K internlm2_5-1_8b-chat-awq"]
    picture = Image.open(terminal(lines, tmp_path / "a.png", size=16))
    picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=(60, 60, 60)).save(tmp_path / "b.jpg")
    seen = ocr.recognise(tmp_path / "b.jpg", digest="9" * 64)
    assert [" ".join(repaired(line.text).split()) for line in seen.lines] == [" ".join(line.split()) for line in lines]
    with Image.open(tmp_path / "b.jpg") as whole:
        assert all(0 <= line.box[0] < line.box[2] <= whole.width for line in seen.lines)
        assert all(0 <= line.box[1] < line.box[3] <= whole.height for line in seen.lines)


@pytest.mark.skipif(not SANS.exists(), reason="needs the font DejaVu Sans")
def test_prose_beside_a_line_of_code_keeps_its_spaces(tmp_path):
    picture = Image.new("RGB", (760, 150), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((20, 14), "/data/models/internlm2_5-1_8b-chat-w4a16", font=ImageFont.truetype(str(MONO), 14), fill="blue")
    prose = ["Which of the two rivers is the longer one?", "It is the Nile: 6650 km, about 200 more than the other."]
    for row, line in enumerate(prose):
        pen.text((20, 56 + 40 * row), line, font=ImageFont.truetype(str(SANS), 16), fill="black")
    picture.save(tmp_path / "a.png")
    seen = ocr.recognise(tmp_path / "a.png", digest="8" * 64)
    assert [line.text.strip() for line in seen.lines][1:] == prose


@drawn
def test_a_picture_is_looked_at_once_for_its_content(tmp_path, monkeypatch):
    path = terminal(["nvidia-smi  2048 MiB"], tmp_path / "a.png")
    first = ocr.recognise(path, digest="d" * 64)
    monkeypatch.setattr(ocr, "_look", lambda *_: pytest.fail("it is kept"))
    assert ocr.recognise(path, digest="d" * 64) == first


@drawn
def test_a_broken_file_in_the_cache_is_looked_at_again(tmp_path):
    path = terminal(["nvidia-smi  2048 MiB"], tmp_path / "a.png")
    first = ocr.recognise(path, digest="e" * 64)
    (kept,) = (tmp_path / "cache").rglob("e" * 64 + ".json")
    kept.write_text("{", encoding="utf-8")
    assert ocr.recognise(path, digest="e" * 64) == first


def test_a_picture_of_nothing_has_no_lines(tmp_path):
    Image.new("RGB", (300, 200), "white").save(tmp_path / "a.png")
    assert ocr.recognise(tmp_path / "a.png", digest="f" * 64).lines == ()


def test_a_digest_that_is_none_is_never_a_name_of_a_file(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    ocr.recognise(tmp_path / "a.png", digest="../../x")
    assert not list(tmp_path.rglob("x.json"))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "I;16", "1", "RGBA", "F"])
def test_every_kind_of_pixels_becomes_three_channels_of_eight_bits(tmp_path, mode):
    suffix = ".tiff" if mode in ("CMYK", "F") else ".png"
    picture = Image.new(mode, (40, 30))
    picture.save(tmp_path / f"a{suffix}")
    pixels = load_pixels(tmp_path / f"a{suffix}")
    assert (pixels.shape, pixels.dtype) == ((30, 40, 3), np.uint8)


def test_text_on_transparent_ground_stands_out(tmp_path):
    Image.new("RGBA", (40, 30), (255, 255, 255, 0)).save(tmp_path / "a.png")
    light = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    ImageDraw.Draw(light).rectangle((5, 5, 15, 15), fill=(240, 240, 240, 255))
    light.save(tmp_path / "b.png")
    assert load_pixels(tmp_path / "a.png").mean() == 255
    assert load_pixels(tmp_path / "b.png")[0, 0].tolist() == [0, 0, 0]


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert load_pixels(tmp_path / "a.jpg").shape[:2] == (40, 30)


def test_of_a_moving_picture_the_first_frame_is_read(tmp_path):
    frames = [Image.new("L", (20, 20), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_pixels(tmp_path / "a.gif").max() == 0


def test_a_bomb_is_refused_before_it_is_opened(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="too large"):
        load_pixels(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_said_to_be_none(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UsageError):
        load_pixels(tmp_path / "a.png")


# --- rows that lean ---------------------------------------------------------------------------------------------------

FLAT = np.full((400, 600, 3), 30, np.uint8)


def leaning(slopes):
    """Pieces of text of 300 × 20 pixels, one below the other, that rise by so many pixels to the right."""
    return [
        [(100, 40 + 40 * row), (400, 40 + 40 * row + rise), (400, 60 + 40 * row + rise), (100, 60 + 40 * row)]
        for row, rise in enumerate(slopes)
    ]


def test_rows_that_lean_are_made_level_and_their_boxes_found_again():
    quads = leaning([20] * 8)
    level = upright(FLAT, quads)
    back = [level.stored(box) for box in turned(level, quads)]
    for box, quad in zip(back, quads, strict=True):
        across, down = [x for x, _ in quad], [y for _, y in quad]
        assert np.allclose(box, (min(across), min(down), max(across), max(down)), atol=3)


@pytest.mark.parametrize("slopes", [[20] * 8, [4, 6, 8, 10, 12, 14, 16, 18], [-14, -10, -6, -2, 2, 6, 10, 14]])
def test_what_leaned_is_level(slopes):
    level = upright(FLAT, quads := leaning(slopes))
    for corners in corners_in(level, quads):
        assert abs(corners[1][1] - corners[0][1]) < 3


@pytest.mark.parametrize("slopes", [[0] * 8, [1, -1, 0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 6, 7], [20, 20]])
def test_a_screenshot_is_left_as_it_is(slopes):
    assert upright(FLAT, leaning(slopes)) is None


def corners_in(level, quads):
    """The corners of the pieces, as they stand in the level picture."""
    there = np.linalg.inv(level.back)
    for quad in quads:
        told = [there @ np.array([x, y, 1]) for x, y in quad]
        yield [(x / w, y / w) for x, y, w in told]


def turned(level, quads):
    for corners in corners_in(level, quads):
        across, down = [x for x, _ in corners], [y for _, y in corners]
        yield tuple(round(each) for each in (min(across), min(down), max(across), max(down)))
