"""The cache of an engine with TensorRT's own attention: a row's tokens lie together."""

from nemo_trt import contract
from nemo_trt.config import ModelConfig
from nemo_trt.engines.device import Device
from nemo_trt.engines.device_cache import DeviceCache

from .engine_record import EngineRecord
from .runtime import Context


class RowCache(DeviceCache):
    """A `DeviceCache` that a context reads and updates in place."""

    def __init__(self, device: Device, config: ModelConfig, record: EngineRecord) -> None:
        super().__init__(
            device,
            config,
            record.attention_dtype,
            max_batch=record.options.max_batch,
            capacity=record.options.max_seq_len,
        )

    def bind(self, context: Context, first_row: int, rows: int | None) -> None:
        """Bind past and present to the same memory from `first_row` on; fix their shapes for
        `rows`, if any."""
        config = self._config
        for past, present in contract.cache_names(config.num_layers):
            address = self.address(past, first_row)
            context.set_address(past, address)
            context.set_address(present, address)
            if rows is not None:
                shape = (rows, config.num_kv_heads, self._capacity, config.head_dim)
                context.set_shape(past, shape)
