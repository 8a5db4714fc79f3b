"""Which rows of the checkpoint benchmark are measured."""

from benchmarks.checkpoint.__main__ import chosen_rows


def names(only):
    return [row.name for row in chosen_rows(only.split("|"))]


PLAIN = ["plain write, fsync", "plain read", "plain read, kept"]


def test_a_row_by_its_name_comes_with_what_it_reads_and_is_compared_with():
    assert names("LUMA load") == [*PLAIN, "LUMA save, none", "LUMA load"]


def test_rows_by_parts_of_their_names():
    assert names("LUMA verify|direct") == [
        *PLAIN, "direct write", "direct read", "LUMA save, none", "LUMA verify",
    ]  # fmt: skip
    assert "copy of AdamW" in names("LUMA to AdamW")


def test_all_rows_by_default():
    assert names("") == names("|".join(names("")))
