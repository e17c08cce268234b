"""The page in a real browser: upload, type, see, change, download."""

import json

import numpy as np
import pytest
from PIL import Image

from dcp_clip.app.segmenter import Request, Segmenter

DRAWINGS = "Drawings (EmojiScenes)"
# The pixels of a picture that is reduced to 4 x 4.
THUMBNAIL = """(picture) => {
  const context = new OffscreenCanvas(4, 4).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, 4, 4);
  return [...context.getImageData(0, 0, 4, 4).data];
}"""


@pytest.fixture
def errors():
    """What went wrong in the browser; a test fails if something did."""
    found = []
    yield found
    assert not found


@pytest.fixture
def open_page(browser, page, errors):
    """``open_page()``: a new user with the page open; waits are generous."""
    contexts = []

    def check(request):
        if request.url.startswith("http") and not request.url.startswith(page.local_url):
            errors.append(f"request to {request.url}")

    def start():
        context = browser.new_context(accept_downloads=True)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(600_000)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", check)
        tab.goto(page.local_url)
        tab.wait_for_selector("#viewer [data-state=empty]")
        return tab

    yield start
    for context in contexts:
        context.close()


def upload(tab, path):
    tab.set_input_files("#photo input[type=file]", str(path))
    tab.wait_for_selector("#photo img")


def type_names(tab, names, box="#names"):
    tab.fill(f"{box} textarea", names)
    tab.press(f"{box} textarea", "Enter")


def wait_for_region(tab, name, viewer="#viewer"):
    tab.wait_for_selector(f'{viewer} [data-regions*="{name}"]')
    return set(tab.get_attribute(f"{viewer} [data-regions]", "data-regions").split("; "))


def choose_drawings(tab):
    tab.click("#options > button")
    tab.click("#model input")
    tab.get_by_role("option", name=DRAWINGS).click()


def wait_for_message(tab, text):
    message = tab.locator(".toast-body", has_text=text)
    message.wait_for()
    assert "Traceback" not in message.inner_text()
    message.get_by_label("Close").click()
    message.wait_for(state="detached")


def test_upload_type_see_change_and_download(open_page, models, fox):
    tab = open_page()
    choose_drawings(tab)
    upload(tab, fox)
    type_names(tab, "fox; volcano; wallpaper; checkered tablecloth")
    names = wait_for_region(tab, "volcano")
    assert names == {"fox", "volcano", "wallpaper", "checkered tablecloth"}
    # The table has shares; the label at the pointer has the name and the confidence.
    assert tab.locator("#viewer tbody tr").count() == 4
    expected = models.get(DRAWINGS)(fox, vocabulary="fox; volcano; wallpaper; checkered tablecloth")
    share = f"{100 * expected.found[0].share:.1f} %"
    assert share in tab.locator("#viewer tbody tr").first.inner_text()
    canvas = tab.locator("#viewer canvas")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] / 2, "y": box["height"] / 20})
    middle = expected.label_map[512 // 20, 256]
    label = tab.locator("#viewer .viewer-label.visible").inner_text()
    assert expected.vocabulary.display_names[middle] in label and "%" in label
    # The slider of the overlay changes the picture without the server.
    tab.mouse.move(0, 0)
    pixel = "(c) => [...c.getContext('2d').getImageData(9, 9, 1, 1).data]"
    before = canvas.evaluate(pixel)
    tab.locator("#viewer input[type=range]").fill("0")
    photo = np.array(Image.open(fox))[9, 9]
    after = canvas.evaluate(pixel)
    assert after != before and np.abs(np.array(after[:3]) - photo).max() < 24
    # Other names on the same image, a second result beside it, unknown pixels.
    type_names(tab, "dog; mountain; wallpaper; table")
    assert "fox" not in wait_for_region(tab, "dog")
    tab.check("#compare input")
    type_names(tab, "fox; wallpaper; table", "#other-names")
    assert "fox" in wait_for_region(tab, "fox", "#other-viewer")
    assert "dog" in wait_for_region(tab, "dog")
    tab.locator("#unknown input[type=number]").fill("0.9")
    tab.locator("#unknown input[type=number]").press("Enter")
    wait_for_region(tab, "unknown")
    # Downloads are those of the first result, with its unknown pixels.
    tab.click("#download > button")
    _, answer = Segmenter(models)(
        Request(str(fox), "dog; mountain; wallpaper; table", DRAWINGS, 0.9)
    )
    for kind, name in (("labels", "fox_labels.png"), ("coco", "fox_coco.json")):
        with tab.expect_download() as download:
            tab.click(f"#save-{kind}")
        assert download.value.suggested_filename == name
        path = download.value.path()
        if kind == "labels":
            np.testing.assert_array_equal(np.array(Image.open(path)), answer.label_map)
        else:
            assert json.loads(path.read_text(encoding="utf-8"))["annotations"]


def choose_sample(tab, index):
    tab.click(f"button[data-sample='{index}']")


def test_names_typed_after_a_sample_belong_to_it(open_page):
    tab = open_page()
    choose_sample(tab, 2)
    wait_for_region(tab, "basketball")
    choose_sample(tab, 0)
    type_names(tab, "sand; night sky")
    tab.locator("#viewer .viewer-time", has_text="2 names").wait_for()
    tab.wait_for_timeout(2_000)  # a late answer would replace this one
    assert wait_for_region(tab, "night sky") == {"sand", "night sky"}
    tab.locator("#viewer input[type=range]").fill("0")
    photo, result = (tab.locator(x).evaluate(THUMBNAIL) for x in ("#photo img", "#viewer canvas"))
    assert np.abs(np.subtract(photo, result)).mean() < 12, (photo, result)


def test_a_removed_sample_has_no_result(open_page):
    tab = open_page()
    choose_sample(tab, 1)
    wait_for_region(tab, "volcano")
    tab.get_by_label("Remove Image").click()
    tab.wait_for_selector("#viewer [data-state=empty]")
    tab.click("#download > button")
    tab.click("#save-coco")
    wait_for_message(tab, "Segment an image first")


def test_an_emptied_threshold_is_zero(open_page):
    tab = open_page()
    choose_sample(tab, 1)
    wait_for_region(tab, "volcano")
    tab.click("#options > button")
    number = tab.locator("#unknown input[type=number]")
    number.fill("0.9")
    number.press("Enter")
    wait_for_region(tab, "unknown")
    row = tab.locator("#viewer tbody tr", has_text="unknown")
    assert "–" in row.inner_text()  # the confidence is that of rejected names
    number.fill("")
    tab.wait_for_function(
        "!document.querySelector('#viewer [data-regions]').dataset.regions.includes('unknown')"
    )


@pytest.mark.parametrize("size", [(3000, 60), (60, 3000), (8, 5), (1, 1)])
def test_strips_and_tiny_images_can_be_read(open_page, tmp_path, size):
    Image.new("RGB", size, "orange").save(tmp_path / "odd.png")
    tab = open_page()
    tab.fill("#names textarea", "orange")
    upload(tab, tmp_path / "odd.png")
    wait_for_region(tab, "orange")
    canvas = tab.locator("#viewer canvas").bounding_box()
    assert min(canvas["width"], canvas["height"]) >= 72
    frame = tab.locator("#viewer .viewer-frame").bounding_box()
    tab.mouse.move(frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2)
    label = tab.locator("#viewer .viewer-label.visible").bounding_box()
    assert frame["x"] <= label["x"] and frame["y"] <= label["y"]
    assert label["x"] + label["width"] <= frame["x"] + frame["width"]
    assert label["y"] + label["height"] <= frame["y"] + frame["height"]


def test_all_names_can_be_read_beside_two_results(open_page):
    # The column of the names is narrower beside two results, so they need more lines.
    tab = open_page()
    choose_sample(tab, 1)
    wait_for_region(tab, "volcano")
    tab.click("#options > button")
    tab.check("#compare input")
    tab.wait_for_selector("#other-names textarea")
    hidden = "(box) => box.scrollHeight - box.clientHeight"
    assert tab.locator("#names textarea").evaluate(hidden) <= 0


def test_label_is_at_the_pointer_and_rows_have_the_keyboard(open_page):
    tab = open_page()
    choose_sample(tab, 1)
    wait_for_region(tab, "volcano")
    canvas = tab.locator("#viewer canvas").bounding_box()
    x, y = canvas["x"] + 20, canvas["y"] + 20
    tab.mouse.move(x, y)
    label = tab.locator("#viewer .viewer-label.visible").bounding_box()
    assert label["x"] == pytest.approx(x + 14, abs=3) and label["y"] == pytest.approx(y + 18, abs=3)
    tab.mouse.move(0, 0)
    tab.locator("#viewer tbody tr").nth(1).focus()
    assert "selected" in tab.locator("#viewer tbody tr").nth(1).get_attribute("class")
    assert "volcano" in tab.locator("#viewer [role=status]").inner_text()


def test_messages(open_page, bad_files, fox):
    tab = open_page()
    tab.click("#segment")
    wait_for_message(tab, "Add an image first")
    tab.click("#download > button")
    tab.click("#save-labels")
    wait_for_message(tab, "Segment an image first")
    tab.fill("#names textarea", "sky; road")
    for path in bad_files:
        tab.set_input_files("#photo input[type=file]", str(path))
        wait_for_message(tab, path.name)
        tab.get_by_label("Remove Image").click()
    upload(tab, fox)
    tab.wait_for_selector("#viewer canvas")
    type_names(tab, "a/b")
    wait_for_message(tab, "looks like a path")
    type_names(tab, "fox;; dog")
    wait_for_message(tab, "A name is missing in 'fox;; dog'")
    type_names(tab, '"<b>sky')
    wait_for_message(tab, "<b>sky")  # as text


def test_20000_names(open_page, fox):
    tab = open_page()
    upload(tab, fox)
    names = [f"thing {i}" for i in range(19_998)]
    type_names(tab, "; ".join(["wall", "fence", *names]))
    tab.locator("#viewer .viewer-time", has_text="20,000 names").wait_for()


def test_two_users_at_once(open_page):
    first, second = open_page(), open_page()
    first.click("button[data-sample='0']")
    second.click("button[data-sample='2']")
    assert "orca" in wait_for_region(second, "basketball")
    assert "raccoon" in wait_for_region(first, "sand")
    type_names(first, "sand; raccoon")
    assert wait_for_region(first, "sand; raccoon") == {"sand", "raccoon"}
    assert "orca" in wait_for_region(second, "basketball")
