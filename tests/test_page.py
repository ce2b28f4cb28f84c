"""Pages of comparisons: well-formed, complete, without anything from outside."""

import base64
import dataclasses
import io
import itertools
import re
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from keras import layers
from small import cnn, enliven, quantizers

import intact
from intact.analysis.comparison import Comparison, Distribution, FileNode, TensorComparison
from intact.analysis.drawings import MOST_LANES, picture, rails
from intact.analysis.page import page
from intact.analysis.remedies import remedies

VOID = {"meta", "path", "circle", "br"}


class Parser(HTMLParser):
    """Fails where tags are not closed as they were opened."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.count = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.count += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)


def read(text):
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not parser.open
    # Links lead to places of the page, images are a part of it, and there is one script.
    assert not re.search(r"https?:|url\(|@import|<script .", text)
    assert text.count("<script>") == 1
    targets = set(re.findall(r' id="([^"]*)"', text))
    assert set(re.findall(r'href="#([^"]*)"', text)) <= targets
    assert len(re.findall("href=", text)) == len(re.findall('href="#', text))
    assert len(re.findall("src=", text)) == len(re.findall('src="data:image/png;base64,', text))
    return " ".join(" ".join(parser.texts).split())


def compared(model, data, scheme="int8", reference=True):
    q = intact.quantize_model(model, scheme)
    if scheme != "float32":
        intact.calibrate(q, data, verbose=0)
    return intact.compare(q, intact.export(q), data, float_model=model if reference else None)


@pytest.fixture
def data(rng):
    return rng.normal(size=(20, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize("scheme", ["int8", "int16x8", "uint8", "weight_only_4", "float32"])
@pytest.mark.parametrize("reference", [True, False])
def test_pages_of_all_kinds(rng, data, scheme, reference):
    found = compared(enliven(cnn(), rng), data, scheme, reference)
    text = read(page(found))
    for a in (*found.layers, *found.floats):
        assert a.name in text
    for node in found.nodes:
        assert node.name in text
    # Without the float model, it is the quantized one where nothing is rounded.
    assert ("signal to noise of the outputs" in text) == (reference or scheme != "float32")
    assert "20 samples" in text


def test_the_file_is_written_whole_or_not(rng, data, tmp_path):
    found = compared(enliven(cnn(), rng), data)
    found.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page(found)
    with pytest.raises(intact.ExportError, match="is missing"):
        found.to_html(tmp_path / "none" / "page.html")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_the_worst_layer_comes_first_with_what_to_try(rng, data):
    model = enliven(cnn(), rng)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    quantizers(q)["act_2"].set_range(0.0, 0.2)
    text = read(page(intact.compare(q, intact.export(q), data, float_model=model)))
    worst = text.split("Worst layers first")[1].split("All layers in order")[0]
    assert worst.index("act_2") < min(worst.index(f" {name} ") for name in ("pool", "head"))
    assert "are clipped" in worst


def test_float_islands_are_shaded(rng, data):
    rules = (intact.Rule("act", None, None), intact.Rule())
    scheme = intact.Scheme("island", rules)
    found = compared(enliven(cnn("tanh"), rng), data, scheme)
    made = page(found)
    assert made.count('class="rail float"') == 1
    text = read(made)
    assert "Shaded ops compute in float" in text
    order = text.split("All layers in order")[1].split("The graph of the file")[0]
    assert order.index("float32") < order.index("head")


def test_samples_that_change_their_class_are_shown(rng, data):
    """The first two classes are nearly as likely as each other."""
    model = enliven(cnn(), rng)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    quantizers(q)["act_2"].set_range(0.0, 0.05)
    found = intact.compare(q, intact.export(q), data, float_model=model)
    before = model.predict(data, verbose=0).argmax(1)
    after = intact.load_litert(intact.export(q)).predict(data).argmax(1)
    assert found.flipped == (before != after).sum() > 0
    for flip in found.flips:
        assert (flip.before, flip.after) == (before[flip.sample], after[flip.sample])
        assert flip.picture.startswith("data:image/png;base64,")
    text = read(page(found))
    assert f"{found.flipped} of 20 samples: their largest output is another one" in text
    assert "picture" not in found.to_dict()["flips"][0]


def test_pictures():
    image = pytest.importorskip("PIL.Image")
    values = np.arange(48.0).reshape(4, 4, 3)
    content = base64.b64decode(picture(values).partition(",")[2])
    pixels = np.asarray(image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(pixels, np.rint(values * 255 / 47))
    assert picture(np.zeros(5)) == picture(np.zeros((4, 4, 2))) == ""
    assert image.open(io.BytesIO(base64.b64decode(picture(np.zeros((200, 300, 1)))[22:]))).size == (
        75,
        50,
    )


def test_the_graph_leads_to_the_layers_with_shapes_and_times(rng, data, tmp_path):
    model = enliven(cnn(), rng)
    q = intact.calibrate(intact.quantize_model(model), data, verbose=0)
    intact.export(q, tmp_path / "net.tflite")
    found = intact.compare(q, tmp_path / "net.tflite", data, float_model=model, latency=True)
    ops = [node for node in found.nodes if node.kind != "INPUT"]
    assert all(node.latency > 0 and node.shape for node in ops)
    assert found.types == "weights int8; activations float32, int8"
    made = page(found)
    text = read(made)
    assert "net.tflite" in text and intact.__version__ in text and "Keras 3" in text
    place = next(i for i, node in enumerate(found.nodes) if node.name == "act_2")
    assert f'href="#layer-{place}"' in made and f'href="#op-{place}"' in made
    assert "µs" in text and "&times;" in made


def test_names_are_escaped():
    name = "<b>a\"&'</b>"
    spread = Distribution(-1.0, 1.0, (1, 2), range=(-0.5, 0.5), clipped=0.1)
    entry = TensorComparison(name, 10, 5, 2.0, tensor=name, dtype="int8", kind="<i>", lsb=(0, 5, 5))
    entry = dataclasses.replace(entry, activations=spread, snr=3.0, local_snr=3.0)
    nodes = (FileNode("INPUT", name, "int8"), FileNode("<x>", name, "int8", reads=(0,)))
    made = page(Comparison((entry,), (entry,), 1, nodes=nodes, model=name))
    assert name in read(made)
    assert "<b>a" not in made
    assert "<i>" not in made
    assert "<x>" not in made


def test_a_large_model_has_a_page_of_bounded_size():
    counts = tuple(int(n) for n in np.random.default_rng(0).integers(1, 10**7, 48))
    spread = Distribution(-1.234567, 7.654321, counts, (-1.0, 7.0), 0.0123)
    entries = [
        TensorComparison(
            f"stage_{i}_block_{i}_conv_{i}_relu",
            10**8,
            12345,
            3.0,
            tensor="x",
            dtype="int8",
            kind="DepthwiseConv2D",
            lsb=(1, 2, 3, 4, 5, 6, 7, 8, 9),
            snr=20.0,
            local_snr=33.0,
            activations=spread,
            weights=spread,
        )
        for i in range(1000)
    ]
    nodes = [FileNode("INPUT", "x", "int8")]
    nodes += [FileNode("CONV_2D", e.name, "int8", reads=(i,)) for i, e in enumerate(entries)]
    made = page(Comparison((entries[-1],), tuple(entries), 100, nodes=tuple(nodes)))
    assert len(made) < 5 * 2**20
    read(made)


def test_rails_meet():
    # x feeds a chain and a sum: one lane for each, and one behind the sum.
    reads = ((), (0,), (1,), (2, 0), (3,))
    drawn = rails(FileNode("OP", str(i), "int8", reads=r) for i, r in enumerate(reads))
    places = [int(re.search(r'cx="(\d+)"', svg)[1]) for svg in drawn]
    assert places[1] == places[2] != places[0] == places[3] == places[4]
    for above, below in itertools.pairwise(drawn):
        ends = set(re.findall(r"M(\d+) (?:0|15)V30", above)) | set(
            re.findall(r" (\d+) 30(?=[M\"])", above)
        )
        starts = set(re.findall(r"M(\d+) 0", below))
        assert starts == ends


def test_rails_have_a_largest_width():
    reads = [()] + [(0,)] * 30 + [tuple(range(31))]
    drawn = rails(FileNode("OP", str(i), "int8", reads=r) for i, r in enumerate(reads))
    widths = {int(re.search(r'width="(\d+)"', svg)[1]) for svg in drawn}
    assert len(widths) == 1
    assert widths.pop() <= 14 * (MOST_LANES + 1)


FINE = TensorComparison("a", 10, 0, 0.0, dtype="int8", snr=40.0, local_snr=45.0)
SPREAD = Distribution(-1.0, 1.0, (5,) * 10, range=(-1.0, 1.0), clipped=0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Nothing is wrong"),
        ({"max_lsb": 3.0, "lsb": (1,)}, "3 LSB from Keras"),
        ({"activations": dataclasses.replace(SPREAD, clipped=0.03)}, "3 % of the float"),
        (
            {
                "local_snr": 25.0,
                "activations": Distribution(-1, 1, (0, 0, 99, 0, 0, 0, 0, 0), range=(-1, 1)),
            },
            "within 12 % of the range",
        ),
        (
            {"weights": dataclasses.replace(SPREAD, snr=15.0), "layer": "conv"},
            "Rule(&#x27;conv&#x27;, weights=TensorSpec(8",
        ),
        ({"local_snr": 25.0, "snr": 24.0}, "activations=TensorSpec(16"),
        ({"snr": 20.0}, "comes from the layers before"),
    ],
)
def test_what_to_try(changes, words):
    lines = remedies(dataclasses.replace(FINE, **changes))
    assert any(words in line for line in lines), lines


def test_a_range_that_its_kernel_has_is_not_called_clipped(rng):
    # The range of a softmax ends at 255/256, which a sure model's outputs lie beyond.
    dense = layers.Dense(3, "softmax", name="sure")
    model = keras.Sequential([keras.Input((4,)), dense])
    dense.kernel.assign(4 * rng.normal(size=(4, 3)))
    found = compared(model, rng.normal(size=(50, 4)).astype("float32"))
    softmax = next(a for a in found.layers if a.kind == "Softmax")
    assert softmax.activations.clipped is None
    assert not any("clipped" in line for line in remedies(softmax))
    assert next(a for a in found.layers if a.kind == "Dense").activations.clipped is not None


def test_search_finds_the_layer_and_its_kind(rng, data):
    made = page(compared(enliven(cnn(), rng), data))
    assert 'data-name="act_2 depthwise depthwiseconv2d' in made


def test_a_model_of_one_layer(rng):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="only")])
    found = compared(model, rng.normal(size=(5, 3)).astype("float32"))
    assert "only" in read(page(found))
