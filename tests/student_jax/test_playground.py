"""The playground in a real browser, on the real server with the student of the package."""

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from bridge.arc import parse_task
from bridge.arc_files import load_tasks
from bridge.canvas import Attempts
from bridge.predictions import write_predictions
from bridge.render import PALETTE
from bridge.submission import check_complete, read_submission
from tests.conftest import ROOT, virtual_devices

FOLDER = ROOT / "student_jax" / "playground"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def tasks(task_folder):
    return load_tasks(str(task_folder))


@pytest.fixture(scope="module")
def address(task_folder, tasks, tmp_path_factory):
    """A server of the six tasks that mirror, with the right answers of another student."""
    path = tmp_path_factory.mktemp("compared") / "readout.json"
    attempts = {
        task_id: tuple(Attempts(grid, grid[::-1], 0.5) for grid in task.test_outputs)
        for task_id, task in tasks.items()
    }
    write_predictions(path, {"student": "teacher readout", "tier": "zero-shot"}, attempts)
    arguments = ["--source", str(task_folder), "--compare", str(path), "--warm", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "student_jax.serve", "--port", "0", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": virtual_devices(1)},  # as outside of tests
    )
    yield server.stdout.readline().split()[3].rstrip(";")
    server.kill()
    server.communicate()


@pytest.fixture
def open_page(browser, address):
    """Opens the playground; in the end nothing was complained of, and all went to the server."""
    faults, contexts = [], []

    def opened(where="#task=1a", expected=None, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)

        def complain(message):
            # Of the second kind is what the tests themselves read from canvases.
            known = (expected or "willReadFrequently", "willReadFrequently")
            if message.type in ("error", "warning") and not any(x in message.text for x in known):
                faults.append(message.text)

        page.on("console", complain)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: r.url.startswith((address, "blob:")) or faults.append(r.url))
        # A route turns interception on, and what is asked for meanwhile may slip by: so before all.
        page.route("**/never-asked-for", lambda route: route.abort())
        page.goto(address + "/" + where)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def board(page, label):
    return page.get_by_role("grid", name=re.compile(label))


def answered(page):
    """Waits for an answer to the task as it is."""
    zero_shot = page.get_by_text("Zero-shot", exact=True)
    page.locator(".student[aria-busy=false]", has=zero_shot).first.wait_for()


def pixel(page, grid, row, col):
    """The color of a cell, as the canvas has it: near the corner, beside any dot."""
    side = f"e => e.width / {grid.get_attribute('aria-colcount')}"
    canvas = grid.locator("canvas")
    cell = canvas.evaluate(side)
    at = f"{col * cell + 2}, {row * cell + 2}, 1, 1"
    return canvas.evaluate(f"e => [...e.getContext('2d').getImageData({at}).data].slice(0, 3)")


def click_cell(grid, row, col):
    box = grid.locator("canvas").bounding_box()
    size = box["width"] / int(grid.get_attribute("aria-colcount"))
    grid.locator("canvas").click(position={"x": (col + 0.5) * size, "y": (row + 0.5) * size})


def asked(page, act):
    """Does something, and returns the body of the question that comes of it."""
    with page.expect_request("**/solve*") as question:
        act()
    return json.loads(question.value.post_data)


def test_colors_are_those_of_the_renderer():
    palette = ["#{:02x}{:02x}{:02x}".format(*color) for color in PALETTE.tolist()]
    script = (FOLDER / "drawing.js").read_text()
    assert re.findall(r'"(#[0-9a-f]{6})"', script)[:10] == palette
    style = (FOLDER / "playground.css").read_text()
    assert re.findall(r"\.k\d \{ --k: (#[0-9a-f]{6})", style) == palette


def test_nothing_inline_and_nothing_from_elsewhere():
    html = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=|https?:", html)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses
    assert all((FOLDER / name).is_file() for name in addresses)


def test_a_task_with_answer_truth_and_another_student(open_page, tasks):
    page = open_page("")
    answered(page)
    assert page.locator("#name").inner_text() == "Task 1a"
    assert "not trained on" in page.locator("#about").inner_text()
    assert "283,302 parameters" in page.locator("#health").inner_text()
    first, second = (board(page, f"Zero-shot: attempt {i}, [✓✗]") for i in (1, 2))
    assert first.count() == second.count() == 1
    assert re.search(r"[\d.]+\sm?s, confidence \d+\s%", page.locator(".facts").first.inner_text())
    # The truth, cell by cell.
    truth = board(page, "the right answer")
    for row, col in ((0, 0), (2, 1)):
        expected = PALETTE[tasks["1a"].test_outputs[0][row, col]].tolist()
        assert pixel(page, truth, row, col) == expected
    assert board(page, "teacher readout, zero-shot: attempt 1, ✓ right").count() == 1
    page.uncheck("[name=truth]")
    board(page, "the right answer").wait_for(state="detached")
    assert board(page, "✓ right").count() == 0


def test_drawing_asks_again_without_the_truth(open_page, tasks):
    page = open_page()
    answered(page)
    said = page.locator("#said")
    color = int(tasks["1a"].test_inputs[0][1, 2] + 1) % 10
    page.keyboard.press(str(color))
    body = asked(page, lambda: click_cell(board(page, "Test input"), 1, 2))
    assert body["test"][0]["input"][1][2] == color
    assert [list(pair) for pair in body["test"]] == [["input"]]
    answered(page)
    # It is another question now: its truth is not known.
    assert board(page, "the right answer").count() == 0
    assert "before it was changed" in page.locator(".student").last.inner_text()
    said.get_by_text("Zero-shot answers: attempt 1").wait_for(state="attached")
    body = asked(page, lambda: page.keyboard.press("Control+z"))
    assert body["test"][0]["input"] == tasks["1a"].test_inputs[0].tolist()
    board(page, "the right answer").wait_for()
    body = asked(page, lambda: page.keyboard.press("Control+y"))
    assert body["test"][0]["input"][1][2] == color


def test_a_stroke_is_one_step_and_misses_no_cell(open_page):
    page = open_page()
    answered(page)
    page.locator(".swatch").nth(7).click()
    canvas = board(page, "Example 1, output").locator("canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5)  # in one leap
    body = asked(page, page.mouse.up)
    assert [body["train"][0]["output"][i][i] for i in range(3)] == [7, 7, 7]
    page.locator("button[name=undo]").click()
    page.locator("button[name=undo]:disabled").wait_for()


def test_keyboard_alone_paints_fills_and_resizes(open_page):
    page = open_page()
    answered(page)
    asked(page, page.get_by_role("button", name="New").click)  # it asks by itself
    grid = board(page, "Test input")
    grid.focus()
    for key in ("ArrowDown", "ArrowRight", "3"):
        page.keyboard.press(key)
    body = asked(page, lambda: page.keyboard.press("Space"))
    assert body["test"][0]["input"] == [[0, 0, 0], [0, 3, 0], [0, 0, 0]]
    cell = page.locator(f"#{grid.get_attribute('aria-activedescendant')}")
    assert cell.inner_text() == "row 2, column 2: 3 green"
    assert cell.evaluate("e => getComputedStyle(e).opacity") == "1"
    body = asked(page, lambda: page.keyboard.press("Shift+ArrowRight"))
    assert body["test"][0]["input"][1] == [0, 3, 3]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("f")
    page.keyboard.press("8")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert body["test"][0]["input"] == [[8, 8, 8], [8, 3, 3], [8, 8, 8]]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("p")
    page.locator(".swatch :checked[value='3']").wait_for(state="attached")
    page.get_by_role("spinbutton", name="columns").fill("1")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert body["test"][0]["input"] == [[8], [8], [8]]


def test_pairs_come_and_go_and_outputs_are_copied(open_page):
    page = open_page()
    answered(page)
    body = asked(page, lambda: page.get_by_role("button", name="Add an example").click())
    assert body["train"][2] == {"input": [[0] * 3] * 3, "output": [[0] * 3] * 3}
    board(page, "Example 2, output").click()
    copy = page.get_by_role("button", name="Copy the input here")
    body = asked(page, copy.click)
    assert body["train"][1]["output"] == body["train"][1]["input"]
    body = asked(page, lambda: page.get_by_role("button", name="Remove example 3").click())
    assert len(body["train"]) == 2
    body = asked(page, lambda: page.get_by_role("button", name="Add a test").click())
    assert len(body["test"]) == 2
    board(page, "Zero-shot: attempt 1").nth(1).wait_for()


def test_learning_shows_its_way_and_its_result_apart(open_page):
    page = open_page()
    answered(page)
    page.get_by_label("What learns").select_option("tokens")
    learn = page.get_by_role("button", name="Learn this task first")
    learn.click()
    page.locator("polyline").first.wait_for()
    words = page.locator("#learnt")
    page.get_by_role("button", name="Stop").click()
    words.get_by_text("Stopped: step").wait_for()
    assert re.search(r"step \d+, [\d.]+ s, loss .* nats a cell, fit [\d.]+ %", words.inner_text())
    assert page.locator(".chart > svg").get_attribute("aria-label").startswith("Loss and fit")
    learnt = page.locator(".student", has_text=re.compile("Learnt first, the task.s tokens"))
    assert learnt.get_by_role("grid").count() == 2
    assert board(page, "Zero-shot: attempt").count() == 2
    assert learn.is_enabled()
    said = page.locator("#said", has_text="tokens answers: attempt 1, ")
    said.wait_for(state="attached")
    click_cell(board(page, "Test input"), 0, 0)
    learnt.get_by_text("of the task before it was changed").wait_for()


def test_downloads(open_page, tasks, tmp_path):
    page = open_page()
    answered(page)
    files = {}
    for name in ("Picture (PNG)", "Task (JSON)", "Submission (JSON)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    with Image.open(files["Picture (PNG)"]) as image:
        assert image.format == "PNG"
        colors = {color for _, color in image.convert("RGB").getcolors(2**20)}
    shown = {tuple(PALETTE[value].tolist()) for value in tasks["1a"].test_inputs[0].flat}
    assert shown <= colors
    task = parse_task("1a", json.loads(files["Task (JSON)"].read_text()), "saved")
    assert (task.test_outputs[0] == tasks["1a"].test_outputs[0]).all()
    attempts = read_submission(files["Submission (JSON)"])
    check_complete(attempts, {"1a": task}, "saved")


def test_the_address_keeps_task_and_drawing(open_page):
    page = open_page()
    answered(page)
    page.get_by_role("button", name="Next").click()
    page.get_by_role("heading", name="Task 1b").wait_for()
    page.get_by_label("Task id").fill("1d")
    page.get_by_role("heading", name="Task 1d").wait_for()
    page.go_back()
    page.get_by_role("heading", name="Task 1b").wait_for()
    answered(page)
    page.keyboard.press("9")
    click_cell(board(page, "Test input"), 2, 0)
    page.wait_for_url("**/*t=*")
    again = open_page(page.url[page.url.index("#") :])
    answered(again)
    assert again.get_by_role("heading", name="Task 1b").is_visible()
    assert "changed" in again.locator("#about").inner_text()
    assert pixel(again, board(again, "Test input"), 2, 0) == PALETTE[9].tolist()
    cut = open_page("#t=abc")
    cut.get_by_text("The link holds no whole task").wait_for()


def test_before_the_task_is_there_no_other_takes_its_place(open_page):
    page = open_page("#task=1b")
    answered(page)
    held, asked = [], []
    page.route("**/tasks/1b", lambda route: held.append(route))
    page.on("request", lambda request: asked.append("/solve" in request.url))
    page.reload()
    page.locator("#health", has_text="parameters").wait_for()
    page.wait_for_timeout(600)  # twice what a change waits until it stands in the address
    assert page.url.endswith("#task=1b")
    assert not any(asked)
    held[0].continue_()
    page.get_by_role("heading", name="Task 1b").wait_for()
    answered(page)


def test_a_task_that_cannot_be_had_leaves_the_address_as_it_is(open_page):
    page = open_page("#task=none", expected="404")
    page.get_by_text("Task none: ").wait_for()
    assert board(page, "Test input").is_visible()
    page.wait_for_timeout(600)
    assert page.url.endswith("#task=none")


def test_a_file_is_opened_and_a_bad_one_says_why(open_page, task_folder, tmp_path):
    page = open_page()
    answered(page)
    page.locator("[type=file]").set_input_files(task_folder / "1e.json")
    page.get_by_role("heading", name="1e", exact=False).wait_for()
    assert "a task of your own" in page.locator("#about").inner_text()
    bad = tmp_path / "bad.json"
    bad.write_text('{"train": [{"input": [[1, 2], [3]], "output": [[1]]}], "test": []}')
    page.locator("[type=file]").set_input_files(bad)
    line = "bad: train[0].input[1]: expected 2 cells like row 0, got 1"
    page.get_by_text(line).wait_for()
    assert page.get_by_role("heading", name="1e").is_visible()  # it stays
    page.evaluate(
        "text => { const data = new DataTransfer(); data.setData('text', text);"
        " document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })); }",
        (task_folder / "1f.json").read_text(),
    )
    page.get_by_role("heading", name="my_task").wait_for()
    assert page.locator("#pick-trouble").is_hidden()


def test_a_task_trained_on_is_said_plainly(open_page):
    page = open_page()
    page.get_by_role("heading", name="Task 1a").wait_for()
    page.route(
        "**/tasks/1b",
        lambda route: route.fulfill(json={**route.fetch().json(), "trained_on": True}),
    )
    page.keyboard.press("j")
    page.get_by_text("The student was trained on this task: its answer shows memory").wait_for()


def refuse(page, status, line, headers=None):
    detail = json.dumps({"detail": line})
    page.route(
        "**/solve*", lambda route: route.fulfill(status=status, body=detail, headers=headers or {})
    )


def test_refusals_are_told_in_place(open_page):
    page = open_page(expected="Failed to load resource")
    answered(page)
    trouble = page.locator("#trouble")
    # What this page would never send, the server refuses itself: too many pairs.
    add = page.get_by_role("button", name="Add a test")
    for _ in range(10):
        add.click()
    trouble.get_by_text("test: expected at most 10, got 11").wait_for()
    assert page.get_by_role("button", name="Ask again").is_hidden()
    page.keyboard.press("Control+z")
    trouble.wait_for(state="hidden")
    refuse(page, 429, "the queue is full; come again in 1 s", {"retry-after": "1"})
    click_cell(board(page, "Example 1, input"), 0, 0)
    trouble.get_by_text("the queue is full").wait_for()
    page.unroute("**/solve*")
    trouble.wait_for(state="hidden")  # it came again by itself
    page.route("**/solve*", lambda route: route.abort("connectionrefused"))
    click_cell(board(page, "Example 1, input"), 1, 1)
    trouble.get_by_text("The server does not answer").wait_for()
    page.unroute("**/solve*")
    page.get_by_role("button", name="Ask again").click()
    trouble.wait_for(state="hidden")


def test_phone_has_nothing_wider_than_itself(open_page):
    page = open_page(viewport=PHONE, is_mobile=True, has_touch=True)
    answered(page)
    canvas = board(page, "Test input").locator("canvas")
    asked(page, lambda: (canvas.tap(), page.wait_for_timeout(200), canvas.tap()))  # select, draw
    page.locator("#tests").evaluate("e => e.scrollIntoView()")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert canvas.bounding_box()["width"] > 100  # enlarged for the finger


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_color_scheme(open_page, scheme):
    page = open_page(color_scheme=scheme)
    color, ground = page.evaluate(
        "[getComputedStyle(document.body).color,"
        " getComputedStyle(document.getElementById('tools')).backgroundColor]"
    )
    light = [int(re.search(r"\d+", text)[0]) for text in (color, ground)]
    assert (light[0] < light[1]) == (scheme == "light")
