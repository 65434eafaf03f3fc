"""The tables of a model, from its configuration alone: read by parts that never load a model."""

from recsys.config.system_config import ModelConfig, RowsConfig, TableConfig


def tables_of(config: ModelConfig) -> tuple[TableConfig, ...]:
    """The tables that this model's rows live in. Their names and dimensions follow from the model; the rest
    is set by ``model.tables``, or for all of them where it says nothing."""
    model, its = config, config.tables
    return (
        _table("features", model.dim + 1, model.row_rate, model.row_initial, its.features, model),
        _table("items", model.vector_dim, model.vector_rate, 0.0, its.items, model),
        _table("users", model.vector_dim, model.vector_rate, 0.0, its.users, model),
    )


def _table(
    name: str, dim: int, rate: float, initial: float, its: RowsConfig, model: ModelConfig
) -> TableConfig:
    return TableConfig(
        name,
        dim,
        its.learning_rate or rate,
        initial,
        its.admit_after,
        model.ttl_s if its.ttl_s < 0 else its.ttl_s,
        its.budget_mb,
        its.sketch_mb,
    )
