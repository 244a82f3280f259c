from headrace.transforms.parquet.thrift import I64, LIST, fields, skip


def test_a_bool_takes_no_byte_as_a_field_and_one_in_a_list() -> None:
    assert fields(b"\x11\x16\x02\0", 0, {(2, I64)}) == ({(2, I64): 1}, 4)
    assert skip(b"\x21\x01\x02\0", 0, LIST) == 3
