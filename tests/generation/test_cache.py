"""Requests that are finished are not asked again, whatever ended the run."""

import pytest

from atlantis.data.prompts import Prompt, user_says
from atlantis.errors import DataError, ResumableError
from atlantis.generation.cache import CompletionCache, complete_all, request_key
from atlantis.generation.lazy import LazyGenerator
from atlantis.generation.requests import Completion, Request, requests_for
from atlantis.generation.sampling import SamplingConfig

GREEDY = SamplingConfig(max_new_tokens=4)
SAMPLED = SamplingConfig(max_new_tokens=4, temperature=1.0, num_return_sequences=2)
PROMPTS = [Prompt(name, f"text of {name}") for name in "abcd"]


class Echo:
    """Says what it was asked, backwards and two requests at a time."""

    def __init__(self, *, breaks_after=99):
        self.asked = []
        self.left = breaks_after

    def check(self, requests, config):
        if any(request.prompt.content == "bad" for request in requests):
            raise DataError("bad")

    def complete(self, requests, config):
        places = list(range(len(requests)))[::-1]
        for start in range(0, len(places), 2):
            if not self.left:
                raise ResumableError("gone")
            self.left -= 1
            unit = places[start : start + 2]
            self.asked += [requests[place] for place in unit]
            yield [(place, [said(requests[place], config)]) for place in unit]


def said(request, config):
    return Completion(f"{request.prompt.content}/{request.attempt}\ud800", 2, "stop")


def test_completions_come_in_the_order_of_the_requests(tmp_path):
    requests = requests_for(PROMPTS, SAMPLED)
    steps = []
    cache = CompletionCache(tmp_path)
    found = complete_all(Echo(), requests, SAMPLED, cache, advance=steps.append)
    assert found == [[said(request, SAMPLED)] for request in requests]
    assert steps == [0, 2, 2, 2, 2]


def test_a_run_that_broke_off_is_continued(tmp_path):
    requests = requests_for(PROMPTS, SAMPLED)
    broken, fresh, steps = Echo(breaks_after=3), Echo(), []
    with pytest.raises(ResumableError, match="gone"):
        complete_all(broken, requests, SAMPLED, CompletionCache(tmp_path))
    journal = tmp_path / "journal"
    journal.write_bytes(journal.read_bytes()[:-5])  # the last unit is torn
    cache = CompletionCache(tmp_path)
    found = complete_all(fresh, requests, SAMPLED, cache, advance=steps.append)
    assert found == [[said(request, SAMPLED)] for request in requests]
    assert len(fresh.asked) == 4
    assert steps == [4, 2, 2]
    assert not set(fresh.asked) & set(broken.asked[:4])


def test_nothing_is_opened_where_everything_is_there(tmp_path):
    requests = requests_for(PROMPTS, GREEDY)
    first = complete_all(Echo(), requests, GREEDY, CompletionCache(tmp_path))
    with LazyGenerator(None) as never:
        assert complete_all(never, requests, GREEDY, CompletionCache(tmp_path)) == first


def test_one_prompt_is_asked_once_where_samples_would_be_the_same(tmp_path):
    twice = [Request(Prompt("x", "same")), Request(Prompt("y", "same"), 3)]
    echo, steps = Echo(), []
    found = complete_all(echo, twice, GREEDY, CompletionCache(tmp_path), advance=steps.append)
    assert len(echo.asked) == 1
    assert found[0] == found[1]
    assert sum(steps) == 2


def test_keys_tell_apart_what_matters_and_nothing_else():
    prompt = Prompt("a", "text")
    base = request_key(Request(prompt), SAMPLED)
    others = [
        (Request(prompt, 1), SAMPLED),
        (Request(Prompt("b", "text")), SAMPLED),
        (Request(Prompt("a", "other")), SAMPLED),
        (Request(user_says("text", example_id="a")), SAMPLED),
        *(
            (Request(prompt), SAMPLED.model_copy(update=change))
            for change in ({"seed": 1}, {"top_p": 0.5}, {"temperature": 2.0})
        ),
        (Request(prompt), SAMPLED.model_copy(update={"max_new_tokens": 5})),
        (Request(prompt), GREEDY),
        (Request(prompt), GREEDY.model_copy(update={"num_beams": 2})),
    ]
    keys = [request_key(*other) for other in others]
    assert len({base, *keys}) == len(others) + 1
    more = SAMPLED.model_copy(update={"num_return_sequences": 9})
    assert request_key(Request(prompt), more) == base
    seeded = GREEDY.model_copy(update={"seed": 8})
    assert request_key(Request(Prompt("b", "text"), 5), seeded) == keys[-2]


def test_a_bad_request_stops_before_the_first_one_is_asked(tmp_path):
    echo = Echo()
    with pytest.raises(DataError):
        complete_all(
            echo,
            [Request(PROMPTS[0]), Request(Prompt("z", "bad"))],
            GREEDY,
            CompletionCache(tmp_path),
        )
    assert not echo.asked


def test_a_folder_has_one_user_at_a_time(tmp_path):
    with (
        CompletionCache(tmp_path) as held,
        held,
        pytest.raises(ResumableError, match="in use by another process"),
        CompletionCache(tmp_path),
    ):
        pass
    with CompletionCache(tmp_path):
        pass


def test_no_request_is_no_work(tmp_path):
    assert complete_all(Echo(), [], GREEDY, CompletionCache(tmp_path)) == []
