from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from pegboard.interfaces.logger import RunInfo
from pegboard_tensorboard.events import VERSION, scalars_event, start_event, text_event, version_event
from pegboard_tensorboard.logger import TensorBoardLogger
from pegboard_tensorboard.records import crc32c


def run(folder: Path, start_step: int = 0) -> RunInfo:
    return RunInfo("test", folder, {"lr": 1e-4}, total_steps=10, start_step=start_step)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


def test_events_are_what_the_generated_classes_read() -> None:
    assert Event.FromString(version_event(1.5)) == Event(wall_time=1.5, file_version=VERSION)
    session = SessionLog(status=SessionLog.START)
    assert Event.FromString(start_event(2.0, 300)) == Event(wall_time=2.0, step=300, session_log=session)
    event = Event.FromString(scalars_event(3.0, 2**40, {"loss": 0.5, "größe": -1e300}))
    assert (event.step, [v.tag for v in event.summary.value]) == (2**40, ["loss", "größe"])
    assert [v.simple_value for v in event.summary.value] == [0.5, float("-inf")]
    (value,) = Event.FromString(text_event(4.0, 7, "note", "½")).summary.value
    told = MessageToDict(value)
    assert told["metadata"] == {"pluginData": {"pluginName": "text"}}
    assert (value.tensor.string_val, told["tensor"]["tensorShape"]) == (["½".encode()], {"dim": [{"size": "1"}]})


def test_texts_hold_config_messages_and_status(tmp_path: Path) -> None:
    logger = TensorBoardLogger()
    logger.start(run(tmp_path))
    logger.message("saved")
    logger.finish("stopped")
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    texts = {
        tag: accumulator.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in accumulator.Tags()["tensors"]
    }
    assert texts == {"config": '    {\n      "lr": 0.0001\n    }', "messages": "saved", "status": "stopped"}


def test_a_line_that_a_crash_cut_short_hides_none_before_it(tmp_path: Path) -> None:
    logger = TensorBoardLogger()
    logger.start(run(tmp_path))
    logger.log(1, {"loss": 1.0})
    logger.log(2, {"loss": 2.0})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    steps = [event.step for event in LegacyEventFileLoader(str(path)).Load() if event.summary.value]
    assert steps == [0, 1]
    logger.finish("failed")


def test_logging_before_the_start_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="start"):
        TensorBoardLogger().log(1, {})
