"""Hypothesis strategies for field values of any shape."""

from hypothesis import strategies as st

from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema

WIDE = Schema(
    item=(("author", CATEGORICAL), ("kind", CATEGORICAL), ("price", NUMERIC), ("tags", CATEGORICAL)),
    user=(("country", CATEGORICAL), ("likes", CATEGORICAL)),
    context=(("page", CATEGORICAL), ("surface", CATEGORICAL)),
    vectors=(("embedding", 3),),
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)

names = st.sampled_from(["author", "tags", "kind", "price", "duration_ms", "embedding", "else"])
