from pathlib import Path

from loadtest.sampling import Sampler
from tests import tiny
from tests.server.running import RunningServer, red_image


def test_a_server_on_this_machine_is_found_whole(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, http_workers=2) as server:
        sampler = Sampler(server.url)
        assert sampler.server
        assert sampler.server.pid == server.process.pid
        before = sampler.look()
        server.classify(red_image(1))
        after = sampler.look()
        assert after.pss_bytes
        assert after.mean_batch_since(before) == 1


def test_of_a_server_that_is_not_there_nothing_is_known() -> None:
    sample = Sampler("http://127.0.0.1:9").look()
    assert (sample.images, sample.batches, sample.pss_bytes) == (None, None, None)
