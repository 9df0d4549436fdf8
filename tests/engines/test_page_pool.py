"""The page pool: no page is lost, shared wrongly or given up while somebody holds it."""

import random
from typing import Any

import pytest

from nemo_trt.engines.page_pool import ROOT, PagePool
from nemo_trt.errors import CapacityError, RequestError

pytestmark = pytest.mark.unit


def checked(pool: PagePool, held: list[list[int]]) -> None:
    """Every page is in one state; the index is a tree whose kept pages can be given up in order."""
    holders = [sum(pages.count(page) for pages in held) for page in range(pool.num_pages)]
    assert holders == [pool.holders(page) for page in range(pool.num_pages)]
    free, kept = pool._free, list(pool._kept)
    in_use = [page for page, count in enumerate(holders) if count]
    assert sorted([*free, *kept, *in_use]) == list(range(pool.num_pages))
    assert pool.num_available == pool.num_pages - len(in_use)
    assert all(pool.is_indexed(page) for page in kept)
    assert not any(pool.is_indexed(page) for page in free)
    ages = {page: age for age, page in enumerate(kept)}
    entries: Any = pool._entries
    for page, (parent, tokens) in entries.items():
        assert 1 <= len(tokens) <= pool.page_tokens
        assert (tokens, page) in pool._below[parent]
        if parent != ROOT:
            assert len(entries[parent][1]) == pool.page_tokens
            assert page not in in_use or parent in in_use
            assert parent not in ages or ages[page] < ages[parent]
    assert sum(map(len, pool._below.values())) == len(entries)
    assert all(below == sorted(below) and below for below in pool._below.values())


def filled(pool: PagePool, tokens: list[int]) -> list[int]:
    """Pages of a row that holds some tokens, indexed as far as they go."""
    pages, shared = pool.find(tokens)
    if shared % pool.page_tokens:  # the last one is not wholly the row's
        shared -= shared % pool.page_tokens
        pages.pop()
    pool.share(pages)
    for start in range(shared, len(tokens), pool.page_tokens):
        page = pool.take()
        known = pool.insert(
            page, pages[-1] if pages else ROOT, tokens[start : start + pool.page_tokens]
        )
        if known != page:
            pool.share([known])
            pool.release([page])
        pages.append(known)
    return pages


@pytest.mark.parametrize("page_tokens", [1, 4, 16])
def test_no_page_is_lost_or_shared_wrongly_in_random_use(page_tokens: int) -> None:
    dice = random.Random(page_tokens)
    for _ in range(120):
        pool = PagePool(dice.randint(4, 12), page_tokens)
        rows: list[tuple[list[int], list[int]]] = []
        contents: dict[int, list[int]] = {}  # what was written to each page
        for _ in range(40):
            what = dice.random()
            if what < 0.6 and len(rows) < 4:
                size = dice.randint(1, pool.num_pages * page_tokens // 4 + 1)
                tokens = [dice.randint(0, 1) for _ in range(size)]
                found, length = pool.find(tokens)
                held = [token for page in found for token in contents[page]]
                assert held[:length] == tokens[:length]  # what is found holds what is said
                pages = filled(pool, tokens) if pool.num_available >= 4 + size else []
                for at, page in enumerate(pages):
                    wanted = tokens[at * page_tokens : (at + 1) * page_tokens]
                    if pool.holders(page) == 1 and contents.get(page, [])[: len(wanted)] != wanted:
                        contents[page] = wanted
                if pages:
                    rows.append((tokens, pages))
            elif rows and what < 0.95:
                _, pages = rows.pop(dice.randrange(len(rows)))
                pool.release(pages)
            elif rows:
                pool.forget(dice.choice(dice.choice(rows)[1]))
            checked(pool, [pages for _, pages in rows])
            for tokens, pages in rows:
                held = [token for page in pages for token in contents[page]]
                assert held[: len(tokens)] == tokens


def test_the_longest_prefix_is_found_to_the_token() -> None:
    pool = PagePool(16, 4)
    first = filled(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    filled(pool, [1, 2, 3, 4, 5, 6, 0, 0])
    assert pool.find([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]) == (first, 10)
    assert pool.find([1, 2, 3, 4, 5, 6, 7]) == (first[:2], 7)
    assert pool.find([1, 2, 9]) == (first[:1], 2)
    filled(pool, [1, 2, 3, 4, 9, 9])
    assert pool.find([1, 2, 3, 4, 5, 6, 8]) == (first[:2], 6)
    assert pool.find([2]) == pool.find([]) == ([], 0)


def test_pages_are_given_up_by_age_and_a_prefix_after_what_follows_it() -> None:
    pool = PagePool(4, 2)
    old, new = filled(pool, [1, 2, 3, 4]), filled(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    assert pool.take() == old[1]
    assert pool.find([1, 2, 3, 4]) == (old[:1], 2)
    again, _ = pool.find([1, 2])
    pool.share(again)
    pool.release(again)  # used again: the other one is older now
    assert [pool.take(), pool.take(), pool.take()] == [new[1], new[0], old[0]]
    with pytest.raises(CapacityError, match="all 4 pages of 2 tokens are held"):
        pool.take()


def test_what_is_forgotten_is_found_no_more_and_is_free_once_nobody_holds_it() -> None:
    pool = PagePool(4, 2)
    pages = filled(pool, [1, 2, 3, 4, 5, 6])
    pool.release(pages[2:])
    pool.forget(pages[1])
    assert pool.find([1, 2, 3, 4, 5, 6]) == (pages[:1], 2)
    assert pool.num_kept == 0 and pool.num_available == 2
    later = pool.take()
    assert pool.insert(later, pages[1], [9, 9]) == later and not pool.is_indexed(later)
    pool.release([*pages[:2], later])
    assert (pool.num_kept, pool.num_available) == (1, 4)


def test_two_rows_that_computed_the_same_page_share_one() -> None:
    pool = PagePool(4, 2)
    first, second = pool.take(), pool.take()
    assert pool.insert(first, ROOT, [1, 2]) == first
    assert pool.insert(second, ROOT, [1, 2]) == first
    assert pool.insert(second, ROOT, [1]) == first  # which holds more than that
    third = pool.take()
    assert pool.insert(third, ROOT, [1, 3]) == third


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 16)])
def test_a_pool_has_pages(sizes: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="1 or more"):
        PagePool(*sizes)
