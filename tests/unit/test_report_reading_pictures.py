"""The pictures of a report: found beside it however they are linked, never outside of it, and looked at before use."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
from pathlib import Path

import pytest
from PIL import Image

from lab3.reports import reading_fetch, reading_images
from lab3.reports.model import Picture
from lab3.reports.reading import read_report


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LAB3_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object):
        raise AssertionError("a report was read over the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def png(colour: int = 0, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 0, 0)).save(stream, kind)
    return stream.getvalue()


def put(folder: Path, name: str, data: bytes | None = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)
    return path


def linked(folder: Path, target: str, report: str = "report.md") -> Picture:
    """The picture of a report in `folder` that links `target`."""
    path = folder / report
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"W4A16 lmdeploy 显存\n\n<img src='{target}'>\n")
    (picture,) = read_report(folder).pictures
    return picture


# --- found ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("images/a.png", "images/a.png"),
        ("./images/a.png", "images/a.png"),
        ("images\\a.png", "images/a.png"),
        ("images/a%20b.png", "images/a b.png"),
        ("images/图%201.png", "images/图 1.png"),
        ("/images/a.png", "images/a.png"),
        ("Images/A.PNG", "images/a.png"),
        ("a.png?raw=true", "a.png"),
        ("a.png", "assets/a.png"),
        ("C:\\Users\\me\\Pictures\\a.png", "images/a.png"),
        ("file:///home/me/a.png", "a.png"),
        ("/root/lab/images/a.png", "images/a.png"),
        ("a.png", "a.jpg"),
        ("https://github.com/me/lab/raw/main/images/a%20b.png", "images/a_b.png"),
        ("https://github.com/me/lab/blob/main/images/a.png?raw=true", "images/a.png"),
        ("https://raw.githubusercontent.com/me/lab/main/a.png", "a.png"),
        ("https://gitee.com/me/lab/raw/master/a.png", "img/a.png"),
        ("https://github.com/user-attachments/assets/0a1b-2c3d", "0a1b-2c3d.png"),
        ("//x.y/a.png", "a.png"),
    ],
)
def test_a_linked_picture_is_found_beside_the_report(tmp_path: Path, target: str, name: str):
    path = put(tmp_path, name)
    picture = linked(tmp_path, target)

    assert picture.path == path.resolve()
    assert picture.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert picture.target == target


def test_of_two_with_one_name_that_is_taken_whose_folder_is_named(tmp_path: Path):
    put(tmp_path, "task1/a.png", png(1))
    second = put(tmp_path, "task2/a.png", png(2))

    assert linked(tmp_path, "https://x.y/lab/task2/a.png").path == second.resolve()


def test_two_with_one_name_are_ambiguous(tmp_path: Path):
    put(tmp_path, "task1/a.png", png(1))
    put(tmp_path, "task2/a.png", png(2))
    picture = linked(tmp_path, "https://x.y/a.png")

    assert picture.path is None
    assert picture.why.startswith("ambiguous")


def test_two_copies_of_a_picture_are_not_ambiguous(tmp_path: Path):
    put(tmp_path, "task1/a.png")
    put(tmp_path, "task2/a.png")

    assert linked(tmp_path, "https://x.y/a.png").path is not None


def test_a_report_in_a_folder_below_finds_pictures_beside_that(tmp_path: Path):
    path = put(tmp_path, "images/a.png")

    assert linked(tmp_path, "../images/a.png", "docs/report.md").path == path.resolve()


def test_the_pictures_of_another_report_are_left_to_it(tmp_path: Path):
    put(tmp_path, "other/a.png")
    put(tmp_path, "other/paper.docx", b"")
    (tmp_path / "report.md").write_text("![](a.png)")

    assert read_report(tmp_path / "report.md").pictures[0].path is None


# --- held by the report ----------------------------------------------------------------------------------------------


def test_a_picture_in_the_report_is_kept_in_the_cache_by_its_content(tmp_path: Path, cache: Path):
    data = png()
    picture = linked(tmp_path, "data:image/png;base64," + base64.b64encode(data).decode())

    assert picture.path is not None
    assert picture.path.is_relative_to(cache)
    assert picture.path.read_bytes() == data
    assert picture.digest == hashlib.sha256(data).hexdigest()
    assert len(picture.target) < 100


def test_a_picture_that_a_reference_holds_is_read(tmp_path: Path):
    body = base64.b64encode(png()).decode()
    (tmp_path / "report.md").write_text(f"![][image1]\n\n[image1]: <data:image/png;base64,{body}>\n")

    assert read_report(tmp_path).pictures[0].path is not None


# --- not at hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("gone.png", "no such file"),
        ("https://x.y/gone.png", "by URL"),
        ("C:\\pictures\\gone.png", "machine"),
        ("../gone.png", "outside"),
        ("../../../../etc/passwd", "outside"),
        ("attachment:a.png", "not saved"),
        ("data:image/png;base64,????", ""),
        ("data:image/png", "without data"),
        ("", ""),
    ],
)
def test_why_a_picture_is_not_at_hand_is_said(tmp_path: Path, target: str, why: str):
    (tmp_path / "report.md").write_text(f"text\n\n![]({target})\n")
    (picture,) = read_report(tmp_path).pictures

    assert picture.path is None
    assert picture.digest == ""
    assert picture.why
    assert why in picture.why


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"text", "no picture"),
        (png()[:48], "damaged"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC"),
    ],
)
def test_a_picture_that_cannot_be_used_says_why(tmp_path: Path, data: bytes, why: str):
    put(tmp_path, "a.png", data)
    picture = linked(tmp_path, "a.png")

    assert picture.path is None
    assert why in picture.why


def test_a_picture_that_is_cut_short_is_damaged_even_where_lmdeploy_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    put(tmp_path, "a.png", png()[:48])
    assert "damaged" in linked(tmp_path, "a.png").why


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading_images, "MOST_PIXELS", 100)
    put(tmp_path, "a.png")

    assert "40 x 30 pixels" in linked(tmp_path, "a.png").why


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    outside = put(tmp_path, "outside.png")
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "a.png").symlink_to(outside)
    (folder / "images").symlink_to(tmp_path)

    assert linked(folder, "a.png").path is None
    assert linked(folder, "images/outside.png").path is None


def test_how_many_are_missing_is_a_problem_of_the_report(tmp_path: Path):
    put(tmp_path, "a.png")
    (tmp_path / "report.md").write_text("![](a.png)\n\n![](b.png)\n")

    assert read_report(tmp_path).problems == ("1 of 2 pictures are not at hand",)


# --- fetched ----------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_unless_it_is_asked_for(tmp_path: Path):
    assert "fetches nothing" in linked(tmp_path, "https://x.y/a.png").why


def test_a_fetched_picture_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading_fetch, "fetch_picture", lambda url, most_bytes: png())
    (tmp_path / "report.md").write_text("![](https://x.y/a.png)")
    (picture,) = read_report(tmp_path, fetch=True).pictures

    assert picture.path is not None
    assert picture.path.read_bytes() == png()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x.y/a.png",
        "http://me:secret@x.y/a.png",
        "http://127.0.0.1/a.png",
        "http://10.1.2.3/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:192.168.0.1]/a.png",
        "http://169.254.169.254/latest",
    ],
)
def test_only_public_servers_of_the_web_are_asked(monkeypatch: pytest.MonkeyPatch, url: str):
    def found(host: str, port: int, **_: object):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with pytest.raises(reading_fetch.NotFetched):
        reading_fetch.fetch_picture(url, most_bytes=1000)
