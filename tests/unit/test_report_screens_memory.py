"""Figures of a card's memory, as bars and tables show them."""

import pytest

from lab3.reports.model import FolderSize, MemoryReading, Recognised, TextLine
from lab3.reports.screens import read_screen, read_text


def seen(*lines: str, confidence: float = 0.99) -> Recognised:
    rows = tuple(TextLine(text, (0, 20 * at, 400, 20 * at + 18), confidence) for at, text in enumerate(lines))
    return Recognised(digest="d" * 64, width=800, height=600, lines=rows)


def memory(*lines: str, confidence: float = 0.99) -> list[MemoryReading]:
    readings = read_screen(seen(*lines, confidence=confidence), block=3)
    return [each for each in readings if isinstance(each, MemoryReading)]


SMI = """\
| NVIDIA-SMI 535.54.03    Driver Version: 535.54.03    CUDA Version: 12.2     |
|   0  NVIDIA A100-SXM4-80GB          On  | 00000000:3D:00.0 Off |            0 |
| N/A   34C    P0    61W / 400W |  66447MiB / 81920MiB |      0%      Default |
|   1  NVIDIA GeForce RTX 3090        Off | 00000000:89:00.0 Off |          N/A |
| 30%   41C    P8    21W / 350W |  11368MiB / 24576MiB |      3%      Default |
| Processes:                                                                  |
|  GPU   GI   CI        PID   Type   Process name                  GPU Memory |
|    0   N/A  N/A     50444      C   ...vs/lmdeploy/bin/python     66440MiB |
|    1   N/A  N/A      1234      C   python                        11360MiB |"""


def test_a_studio_bar_tells_figures_share_and_card():
    (bar,) = memory("CPU 3.1%  GPU-1: 30% Nvidia A100 0%", "内存 4.40 / 72 GB 6.11%  显存 11368 / 24566 MiB 46.28%")
    assert (bar.used_mib, bar.total_mib, bar.percent, bar.kind) == (11368, 24566, 46.28, "studio")
    assert (bar.gpu, bar.card, bar.share_percent, bar.doubt) == (1, "Nvidia A100", 30.0, "")


def test_a_bar_in_four_rows_is_one_reading():
    (bar,) = memory(
        "CPU 3.1%", "内存 4.40 / 72 GB 6.11%", "GPU-1: 30% Nvidia A100 0%", "显存 11368 / 24566 MiB", "46.28%"
    )
    assert (bar.used_mib, bar.percent, bar.card) == (11368, 46.28, "Nvidia A100")


def test_the_computers_own_memory_is_none_of_a_card():
    assert memory("内存 4505 / 73728 MiB 6.11%") == []


def test_a_percentage_that_does_not_fit_clear_figures_is_a_doubt_and_no_correction():
    (bar,) = memory("显存 11868 / 24566 MiB 46.28%")
    assert bar.used_mib == 11868
    assert "46.28%" in bar.doubt


def test_one_slip_in_a_blurred_figure_is_put_right_by_the_percentage():
    (bar,) = memory("显存 17368 / 24566 MiB 46.28%", confidence=0.7)
    assert (bar.used_mib, bar.doubt) == (11368, "")
    assert "17368" in bar.place.quote


def test_a_figure_with_a_letter_that_cannot_be_read_is_not_read_in_part():
    assert memory("显存 11\ufffd68 / 24566 MiB 46.28%") == []


def test_more_used_than_there_is_is_a_doubt():
    (row,) = memory("| N/A   34C    P0    61W / 400W |  31368MiB / 24576MiB |      0%      Default |")
    assert "cannot be used" in row.doubt


def test_nvidia_smi_tells_each_card_with_its_processes():
    first, second = memory(*SMI.split("\n"))
    assert (first.gpu, first.card, first.used_mib) == (0, "NVIDIA A100-SXM4-80GB", 66447)
    assert (second.gpu, second.card, second.total_mib) == (1, "NVIDIA GeForce RTX 3090", 24576)
    assert [(each.pid, each.used_mib) for each in second.processes] == [(1234, 11360)]


def test_the_same_table_as_text_is_certain():
    first, _ = (each for each in read_text(SMI, block=0, line=7) if isinstance(each, MemoryReading))
    assert (first.place.line, first.place.confidence, first.place.box) == (9, 1.0, None)


def test_gpu_utilization_is_not_taken_for_the_share_of_memory():
    assert all(each.percent is None for each in memory(*SMI.split("\n")))


def test_a_slices_table_tells_its_share_of_the_card():
    (row,) = memory("|   0  NVIDIA A100-SXM...  00000000:89:00.0 |  20616MiB / 24566MiB    0% /  30% |")
    assert (row.used_mib, row.share_percent, row.kind) == (20616, 30.0, "studio")


@pytest.mark.parametrize(
    ("lines", "used", "total"),
    [
        (["[0] NVIDIA A100-SXM4-80GB | 31°C,   3 % |  7827 / 24566 MB | root(7818M)"], 7827, 24566),
        (["memory.used [MiB], memory.total [MiB]", "11368 MiB, 24566 MiB"], 11368, 24566),
        (["memory.total [MiB], memory.used [MiB]", "24566 MiB, 11368 MiB"], 11368, 24566),
    ],
)
def test_other_tools_tell_it_too(lines, used, total):
    (row,) = memory(*lines)
    assert (row.used_mib, row.total_mib) == (used, total)


def test_the_place_is_the_figures_own_box():
    words = (TextLine("显存", (0, 0, 30, 18), 0.99), TextLine("11368", (60, 0, 100, 18), 0.98))
    words += (TextLine("/", (104, 0, 108, 18), 0.99), TextLine("24566", (112, 0, 150, 18), 0.97))
    words += (TextLine("MiB", (154, 0, 180, 18), 0.99),)
    line = TextLine("显存 11368 / 24566 MiB", (0, 0, 180, 18), 0.99)
    picture = Recognised(digest="d" * 64, width=300, height=20, lines=(line,), pieces=words)
    (reading,) = (each for each in read_screen(picture, block=0) if isinstance(each, MemoryReading))
    assert reading.place.box == (60, 0, 180, 18)


# --- sizes ------------------------------------------------------------------------------------------------------------


def sizes(text: str) -> list[FolderSize]:
    return [each for each in read_text(text, block=0, line=1) if isinstance(each, FolderSize)]


def test_du_rounds_up_so_a_figure_is_a_range():
    (row,) = sizes("1.5G    internlm2_5-1_8b-chat-w4a16-4bit")
    assert row.low - 1 <= 1.4 * 2**30 < row.low
    assert row.high == 1.5 * 2**30


def test_a_listing_gives_each_folder_its_size():
    rows = sizes("root@h:~/model# du -sh *\n0\told\n3.6G\tinternlm2_5-1_8b-chat\n37G\t/root/internlm2-chat-20b/")
    assert [(row.name, row.text) for row in rows] == [
        ("old", "0"),
        ("internlm2_5-1_8b-chat", "3.6G"),
        ("internlm2-chat-20b", "37G"),
    ]


def test_du_of_this_folder_has_the_name_in_the_prompt():
    (row,) = sizes("root@h:~/internlm2_5-1_8b-chat# du -sh .\n3.6G\t.")
    assert row.name == "internlm2_5-1_8b-chat"


def test_bytes_are_exact():
    (row,) = sizes("$ du -sb awq\n1570551421\tawq")
    assert row.low == row.high == 1570551421


def test_a_number_before_a_word_is_no_size_without_du():
    assert sizes("16 samples") == []


def test_files_of_ls_are_sizes_and_its_folders_are_not():
    rows = sizes(
        "-rw-r--r-- 1 root root 1.4G Nov 28 21:37 model.safetensors\ndrwxr-xr-x 2 root root 4.0K Nov 28 21:37 awq"
    )
    assert [(row.name, row.text) for row in rows] == [("model.safetensors", "1.4G")]


def test_a_window_of_properties_tells_bytes():
    (row,) = sizes("internlm2_5-1_8b-chat 属性\n大小: 3.52 GB (3,781,770,388 字节)")
    assert (row.name, row.low, row.high) == ("internlm2_5-1_8b-chat", 3781770388, 3781770388)


def test_a_line_of_the_table_that_touches_a_figure_is_no_letter_of_it():
    (found,) = memory(
        "|   0  NVIDIA L40S    Off | 00000000:01:00.0 Off |", "| 31%  40C  P0  80W / 350W | 12007MiB / 46068MiBi   0% |"
    )
    assert (found.used_mib, found.total_mib) == (12007, 46068)


def test_a_unit_that_goes_on_is_another_word():
    assert memory("12007MiB / 46068MiBs") == []


@pytest.mark.parametrize(
    ("shown", "used", "total"),
    [("18.75GiB / 24.00GiB", 19200, 24576), ("9870MiB / 79.15GiB", 9870, 81050), ("512MiB / 8188MiB", 512, 8188)],
)
def test_nvitop_tells_large_figures_in_gib(shown, used, total):
    (found,) = memory(
        "│   2  GeForce RTX 4090   Off │ 00000000:41:00.0 Off │   N/A │",
        f"│ 33%  51C  P2  210W / 450W │ {shown} │   0%   Default │",
    )
    assert (found.used_mib, found.total_mib, found.gpu) == (used, total, 2)


def test_files_in_gib_are_no_memory_of_a_card():
    assert memory("Downloading model.safetensors: 1.42GiB / 3.52GiB [00:31]") == []


def test_a_query_goes_by_its_own_heading_though_a_letter_is_misread():
    (found,) = memory(
        "PS C:\\lab> nvidia-smi --query-gpu=name,memory.used,memory.total --format=csv",
        "name, memory.used [MiB], memory.totai [MiB]",
        "NVIDIA GeForce RTX 4080, 9034 MiB, 16376 MiB",
    )
    assert (found.used_mib, found.total_mib, found.doubt) == (9034, 16376, "")


def test_a_query_that_asks_for_the_total_first_is_read_so():
    (found,) = memory("memory.total [MiB], memory.used [MiB]", "16376 MiB, 9034 MiB")
    assert (found.used_mib, found.total_mib) == (9034, 16376)


def test_a_slice_is_known_though_marks_stand_before_the_rows():
    (slice_,) = memory(
        "●  | MIG devices:",
        "●  | GPU  GI  CI  MIG |   Memory-Usage |",
        "●  |  1    5   0   2  |   7431MiB / 9856MiB  | 14   0 |",
        "●  |                  |      2MiB / 16383MiB |        |",
    )
    assert (slice_.used_mib, slice_.total_mib, slice_.gpu, slice_.card) == (7431, 9856, 1, "MIG")
