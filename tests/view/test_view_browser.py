"""The page in headless Chromium: what a user sees, hears and can do with the keyboard."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from transformers import PreTrainedModel

from browser import set_screen
from dynts.decode.arm import Arm
from dynts.view.data import TraceView
from dynts.view.page import write_page
from forced_generate import Kept, forced_generate
from nasty_trace import CONFIG, NASTY


@pytest.fixture(scope="module")
def address(shown: TraceView, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(shown, path)
    return path.as_uri()


@pytest.fixture(scope="module")
def kept(model: PreTrainedModel, shown: TraceView, methods: list[Arm]) -> list[Kept]:
    """What `generate` keeps with each method."""
    ids, question = shown.tokens.ids, shown.tokens.question_end
    return [forced_generate(model, ids, question, copy.deepcopy(viewed), CONFIG) for viewed in methods]


@pytest.fixture
def open_page(driver: Any, address: str) -> Any:
    """The page in a wide window, at its last step; afterwards nothing may have gone wrong in it."""
    set_screen(driver, 1400, 900)
    driver.get("about:blank")
    for log in ("browser", "performance"):  # of what was there before
        driver.get_log(log)
    driver.get(address)
    yield driver
    assert driver.get_log("browser") == []


def last_step(shown: TraceView) -> int:
    return len(shown.tokens.ids) - shown.tokens.question_end - 1


def counts(driver: Any) -> list[dict[str, str]]:
    """The numbers at the head of each column."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.column')].map((column) => Object.fromEntries("
        "[...column.querySelectorAll('.counts div')].map((pair) => [pair.className, "
        "pair.querySelector('dd').textContent])))"
    )


def check_counts(driver: Any, kept: list[Kept], step: int) -> None:
    assert driver.find_element(By.ID, "step").get_attribute("value") == str(step)
    for column, method in zip(counts(driver), kept, strict=True):
        for name, expected in method.counts_at(step).items():
            assert float(column[name]) == pytest.approx(expected, abs=0.051), name


def token(driver: Any, column: int, position: int) -> Any:
    return driver.find_elements(By.CLASS_NAME, "column")[column].find_elements(By.CSS_SELECTOR, ".block .t")[position]


def show_all(driver: Any) -> None:
    """Tokens far from what is seen are brought up to date when they come near, or the page is printed."""
    driver.execute_script("window.dispatchEvent(new Event('beforeprint'))")


def test_it_loads_without_errors_and_without_network(open_page: Any, address: str) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in open_page.get_log("performance")]
    asked = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [address]
    assert open_page.execute_script("return performance.getEntriesByType('resource').length") == 0
    heads = [element.text.partition(" 4 KV")[0] for element in open_page.find_elements(By.TAG_NAME, "h2")]
    assert heads == ["dynts", "rkv, native", "window"]


def test_text_of_the_trace_is_shown_and_does_nothing(open_page: Any, shown: TraceView) -> None:
    assert open_page.title == "dynts view: trace-<1>"
    assert open_page.find_elements(By.TAG_NAME, "img") == []
    assert len(open_page.find_elements(By.TAG_NAME, "script")) == 2
    text = open_page.execute_script(
        "return [...document.querySelector('.text').querySelectorAll('.block')].map((block) => "
        "block.textContent).join('')"
    )
    assert text == "".join(shown.texts)
    assert NASTY in text


def test_marks_that_turn_text_around_end_with_their_block(open_page: Any) -> None:
    directions = open_page.execute_script(
        "return [...document.querySelectorAll('h2, .block')].map((element) => getComputedStyle(element).unicodeBidi)"
    )
    assert set(directions) == {"isolate"}


def test_keyboard_moves_the_slider(open_page: Any, shown: TraceView, kept: list[Kept]) -> None:
    last = last_step(shown)
    check_counts(open_page, kept, last)
    slider = open_page.find_element(By.ID, "step")
    slider.send_keys(Keys.HOME)
    check_counts(open_page, kept, 0)
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    check_counts(open_page, kept, 2)
    steps = sorted({step for method in kept for step, _ in method.compactions})
    for step in steps:
        slider.send_keys(Keys.PAGE_DOWN)
        check_counts(open_page, kept, step)
        slider.send_keys(Keys.ARROW_LEFT)
        check_counts(open_page, kept, step - 1)
        slider.send_keys(Keys.ARROW_RIGHT)
    slider.send_keys(Keys.PAGE_DOWN)
    check_counts(open_page, kept, last)
    for step in reversed(steps):
        slider.send_keys(Keys.PAGE_UP)
        check_counts(open_page, kept, step)
    slider.send_keys(Keys.PAGE_UP)
    check_counts(open_page, kept, 0)
    slider.send_keys(Keys.END)
    check_counts(open_page, kept, last)
    spoken = slider.get_attribute("aria-valuetext")
    assert spoken.startswith(f"step {last} of {last}, dynts {round(kept[0].counts_at(last)['cached'])} tokens cached")


def test_every_token_shows_its_state(open_page: Any, shown: TraceView, kept: list[Kept]) -> None:
    slider, question = open_page.find_element(By.ID, "step"), shown.tokens.question_end
    slider.send_keys(Keys.HOME)
    for _ in range(2):
        slider.send_keys(Keys.PAGE_DOWN)
    step = int(slider.get_attribute("value"))
    fed = question + step
    show_all(open_page)
    shows = open_page.execute_script(
        "return [...document.querySelectorAll('.text')].map((text) => [...text.querySelectorAll('.t')]"
        ".map((token) => [token.className.split(' ')[1], token.style.opacity]))"
    )
    partly = 0
    for column, method in zip(shows, kept, strict=True):
        sets = method.sets_at(step)
        for position, (state, opacity) in enumerate(column):
            holders = sum(position in held for held in sets)
            if position >= fed:
                assert state == ("newest" if position == fed else "later")
                continue
            assert (state == "evicted") == (holders == 0)
            share = holders / len(sets)
            assert opacity == ("" if share in (0, 1) else str(round(0.35 + 0.65 * share, 2)))
            partly += 0 < share < 1
    assert partly > 10


def test_tokens_are_up_to_date_when_they_come_into_view(open_page: Any, shown: TraceView) -> None:
    set_screen(open_page, 1400, 420)
    slider, total = open_page.find_element(By.ID, "step"), len(shown.texts)
    open_page.find_element(By.ID, "follow").click()
    look = "const span = arguments[0]; const done = arguments[1]; span.scrollIntoView();"
    look += (
        "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(span.className.split(' ')[1]))))"
    )
    for key, last, first in ((Keys.HOME, "later", "newest"), (Keys.END, "newest", "evicted")):
        open_page.execute_async_script(look, token(open_page, 2, 0))
        slider.send_keys(key)
        assert open_page.execute_async_script(look, token(open_page, 2, total - 1)) == last
        assert open_page.execute_async_script(look, token(open_page, 2, shown.tokens.question_end)) == first


def test_play_and_pause(open_page: Any, shown: TraceView) -> None:
    play, slider = open_page.find_element(By.ID, "play"), open_page.find_element(By.ID, "step")
    assert play.get_attribute("aria-label") == "Play"
    slider.send_keys(Keys.HOME, " ")
    assert play.get_attribute("aria-label") == "Pause"
    wait = "const done = arguments[0]; const value = () => document.getElementById('step').valueAsNumber;"
    wait += "(function look() { if (value() > 3) done(value()); else setTimeout(look, 10); })()"
    assert open_page.execute_async_script(wait) > 3
    play.click()
    assert play.get_attribute("aria-label") == "Play"
    stopped = slider.get_attribute("value")
    assert 0 < int(stopped) <= last_step(shown)
    slider.send_keys(Keys.END, Keys.ARROW_LEFT)
    play.click()
    # from the last step but one: it plays to the end and stops there
    end = "const done = arguments[0]; const play = document.getElementById('play');"
    end += "(function look() { if (!play.classList.contains('playing')) done(); else setTimeout(look, 10); })()"
    open_page.execute_async_script(end)
    assert slider.get_attribute("value") == str(last_step(shown))


def details(driver: Any) -> dict[str, str]:
    """What is said of the token under the pointer or the focus."""
    box = driver.find_element(By.ID, "details")
    assert box.is_displayed()
    return driver.execute_script(
        "return Object.fromEntries([...arguments[0].querySelectorAll('p:not(.token)')]"
        ".map((line) => [...line.children].map((part) => part.textContent.trim())))",
        box,
    )


def expected_fate(method: Kept, position: int, step: int) -> str:
    gone = [
        at for at, sets in method.compactions if position < method.question + at and not any(map_in(sets, position))
    ]
    end = f"evicted at step {gone[0]}" if gone else "never evicted"
    return end if gone and gone[0] <= step else f"; {end}"


def map_in(sets: list[set[int]], position: int) -> list[bool]:
    return [position in held for held in sets]


def check_details(driver: Any, shown: TraceView, kept: list[Kept], position: int, step: int) -> None:
    said = details(driver)
    assert said["position"] == f"{position}, thinking, step {position - shown.tokens.question_end}"
    for importance in shown.importances:
        value = float(importance.values[position - shown.tokens.question_end])
        title = f"{'true label' if importance.kind == 'true' else 'predicted'} ({importance.name})"
        shown_value, _, rank = said[title].partition(", top ")
        assert float(shown_value) == pytest.approx(value, rel=6e-3)
        higher = int((importance.values.nan_to_num(nan=-1) > value).sum())
        known = int((~importance.values.isnan()).sum())
        assert int(rank.rstrip("%")) == pytest.approx(100 * (higher + 1) / known, abs=1.6)
    for viewed, method in zip(shown.kept, kept, strict=True):
        assert said[viewed.name].endswith(expected_fate(method, position, step))


def test_pointer_shows_the_scores(open_page: Any, shown: TraceView, kept: list[Kept]) -> None:
    position = shown.tokens.question_end + 30
    ActionChains(open_page).move_to_element(token(open_page, 0, position)).perform()
    check_details(open_page, shown, kept, position, last_step(shown))
    ActionChains(open_page).move_to_element(open_page.find_element(By.TAG_NAME, "h1")).perform()
    assert not open_page.find_element(By.ID, "details").is_displayed()


def test_focus_shows_the_scores(open_page: Any, shown: TraceView, kept: list[Kept]) -> None:
    question = shown.tokens.question_end
    token(open_page, 1, question + 40).click()
    ActionChains(open_page).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT).perform()
    focused = open_page.switch_to.active_element
    assert focused == token(open_page, 1, question + 41)
    assert focused.get_attribute("aria-describedby") == "details"
    check_details(open_page, shown, kept, question + 41, last_step(shown))
    assert f"position {question + 41}" in open_page.find_element(By.ID, "spoken").get_attribute("textContent")
    ActionChains(open_page).send_keys(Keys.ESCAPE).perform()
    assert not open_page.find_element(By.ID, "details").is_displayed()
    # the part of a character speaks of the whole character
    part = shown.texts.index("😀") - 2
    open_page.execute_script("arguments[0].click()", token(open_page, 0, part))
    assert open_page.find_element(By.CSS_SELECTOR, "#details .token").text == "😀 (part 2 of 4)"


def test_tab_order_and_names(open_page: Any) -> None:
    open_page.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(8):
        ActionChains(open_page).send_keys(Keys.TAB).perform()
        reached.append(
            open_page.execute_script(
                "const here = document.activeElement; const style = getComputedStyle(here);"
                "return [here.id || here.name || here.className.split(' ')[0] || here.tagName, style.outlineStyle]"
            )
        )
    assert [name for name, _ in reached][:7] == ["play", "step", "importance", "follow", "t", "t", "t"]
    assert {outline for _, outline in reached[:7]} <= {"solid", "auto"}
    for control in open_page.find_elements(By.CSS_SELECTOR, "button, input"):
        assert control.accessible_name
    assert open_page.find_element(By.ID, "step").aria_role == "slider"


def test_colours_follow_the_choice(open_page: Any, shown: TraceView) -> None:
    tokens = "[...document.querySelector('.text').querySelectorAll('.t')]"
    levels = f"return {tokens}.map((t) => +/ i(\\d+)/.exec(t.className)[1])"
    question, end = shown.tokens.question_end, shown.tokens.thinking_end
    for index, importance in enumerate(shown.importances):
        open_page.find_elements(By.NAME, "importance")[index].click()
        show_all(open_page)
        shows = open_page.execute_script(levels)
        assert set(shows[:question] + shows[end:]) == {0}
        values = importance.values.tolist()
        known = sorted(value for value in values if value == value)
        for value, level in zip(values, shows[question:end], strict=True):
            tenth = 10 * (known.index(value) + 1) / len(known) if value == value else 0
            assert level == pytest.approx(tenth, abs=1.01)
            assert (level == 0) == (value != value)
        text = open_page.find_element(By.ID, "agreement").text
        assert ("with the answer label: Kendall tau" in text) == (importance.kind == "predicted")


def test_importance_held_is_that_of_the_tokens_in_the_cache(open_page: Any, shown: TraceView, kept: list[Kept]) -> None:
    question, step = shown.tokens.question_end, last_step(shown)
    values = shown.importances[0].values.tolist()
    for column, method in zip(counts(open_page), kept, strict=True):
        sets = method.sets_at(step)
        held = sum(value * sum(map_in(sets, question + index)) / len(sets) for index, value in enumerate(values))
        assert int(column["importance"].rstrip("%")) == pytest.approx(100 * held / sum(values), abs=0.51)


def brightness(driver: Any, script: str) -> float:
    colour = driver.execute_script(f"return {script}")
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3


def test_dark_and_light(open_page: Any) -> None:
    page, ink = "getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color"
    assert brightness(open_page, page) > 200 > 80 > brightness(open_page, ink)
    set_screen(open_page, 1400, 900, "dark")
    assert brightness(open_page, page) < 60 < 180 < brightness(open_page, ink)


@pytest.mark.parametrize(("width", "height"), [(400, 800), (1400, 900), (2400, 1200)])
def test_narrow_and_wide(open_page: Any, width: int, height: int) -> None:
    set_screen(open_page, width, height)
    inside = "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert open_page.execute_script(inside) == [width, height]
    boxes = open_page.execute_script(
        "return [...document.querySelectorAll('#controls *, .column:first-child > header *')]"
        ".filter((element) => element.checkVisibility() && !element.closest('.unseen, svg'))"
        ".map((element) => element.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width
    columns = open_page.find_elements(By.CLASS_NAME, "column")
    seen = [column.rect["x"] + column.rect["width"] <= width for column in columns]
    assert seen == ([True, False, False] if width == 400 else [True] * 3)
    room = open_page.execute_script("return document.getElementById('columns').clientHeight")
    assert room > 0.4 * height
    # the last column can be reached
    token(open_page, 2, 5).click()
    box = token(open_page, 2, 5).rect
    assert 0 <= box["x"] < width


def test_following_stays_in_the_column(open_page: Any, shown: TraceView) -> None:
    set_screen(open_page, 400, 800)
    open_page.execute_script("const main = document.getElementById('columns'); main.scrollLeft = main.scrollWidth")
    where = "const main = document.getElementById('columns'); return [main.scrollLeft, main.scrollTop]"
    left, top = open_page.execute_script(where)
    open_page.find_element(By.ID, "step").send_keys(Keys.ARROW_LEFT)
    frame = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    open_page.execute_async_script(frame)
    now_left, now_top = open_page.execute_script(where)
    assert now_left == left > 0
    assert now_top > top == 0


def test_a_link_names_a_step(open_page: Any, address: str, kept: list[Kept]) -> None:
    open_page.get(f"{address}#step=17")
    check_counts(open_page, kept, 17)
    open_page.get(f"{address}#step=99999")
    check_counts(open_page, kept, int(open_page.find_element(By.ID, "step").get_attribute("max")))


def test_the_chart_is_a_slider_too(open_page: Any, shown: TraceView) -> None:
    chart = open_page.find_element(By.ID, "chart")
    ActionChains(open_page).move_to_element(chart).click().perform()
    step = int(open_page.find_element(By.ID, "step").get_attribute("value"))
    assert step == pytest.approx(last_step(shown) / 2, abs=2)
    assert Path(open_page.current_url).name == "page.html"
