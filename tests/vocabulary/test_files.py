"""Files of names: those that other programs write, and files that no program should write."""

import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_clip.vocabulary import Vocabulary, VocabularyError
from dcp_clip.vocabulary.categories import READERS, read_categories

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 9, "file_name": "a.jpg"}],
    "annotations": [],
    "categories": [
        {"supercategory": "outdoor", "id": 10, "name": "traffic light", "isthing": 1},
        {"supercategory": "person", "id": 1, "name": "person", "color": [220, 20, 60]},
        {"supercategory": "vehicle", "id": 3, "name": "car", "keypoints": ["a"]},
    ],
}
CVAT = [
    {"name": "person", "id": 31, "color": "#c06060", "type": "any", "attributes": []},
    {"name": "car", "id": 7, "color": "", "type": "polygon", "attributes": [{"name": "x"}]},
    {"name": "traffic light", "id": 8, "color": "#fff0f0", "type": "any", "sublabels": []},
]
LABEL_STUDIO = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image">
    <Label value="person" background="rgba(192, 96, 96, 0.7)"/>
    <Label value="car" background="red"/><Label value="traffic light"/>
  </BrushLabels>
</View>
"""
CVAT_XML = """<?xml version="1.0" encoding="utf-8"?>
<annotations><meta><job><labels>
<label><name>person</name><color>#c06060</color><type>any</type></label>
<label><name>car</name></label><label><name>traffic light</name></label>
</labels></job></meta><image id="0" name="a.jpg"><polygon label="car"/></image></annotations>
"""
PBTXT = """item {\n  name: "/m/1"\n  id: 1\n  display_name: "person"\n}
item { id: 2 name: 'car' }\n# one more\nitem {\n  id: 3, name: "traffic light"\n}
"""
SAME = ["person", "car", "traffic light"]
FILES = {
    "coco.json": json.dumps(COCO),
    "cvat.json": json.dumps(CVAT),
    "cvat_task.json": json.dumps({"name": "task", "labels": CVAT}),
    "yolo.yaml": "path: ../data\ntrain: images/train  # relative\nnc: 3\n"
    "names: ['person', 'car', 'traffic light']\n",
    "yolo_dict.yml": "names:\n  2: traffic light\n  0: person\n  1: car\n",
    "list.yaml": "- person\n- car\n- traffic light\n",
    "label_studio.xml": LABEL_STUDIO,
    "notes.json": '{"categories": [{"id": 0, "name": "person"}, {"id": 1, "name": "car"}, '
    '{"id": 2, "name": "traffic light"}], "info": {}}',
    "parsed.json": json.dumps({"tag": {"type": "BrushLabels", "labels": SAME}}),
    "cvat.xml": CVAT_XML,
    "labelmap.txt": "# label:color_rgb:parts:actions\nperson:192,96,96::\ncar:::\n"
    "traffic light:1,2,3:a,b:\n",
    "label_map.pbtxt": PBTXT,
    "classes.txt": "person\ncar\ntraffic light\n",
    "obj.names": "person\ncar\ntraffic light",
    "numbers.txt": "0: person\n1: car\n2: traffic light\n",
    "from_one.txt": "1 person\n2 car\n3 traffic light\n",
    "tabs.txt": "7\tperson\n9\tcar\n13\ttraffic light\n",
    "id2label.json": '{"0": "person", "2": "traffic light", "1": "car"}',
    "config.json": '{"architectures": ["x"], "id2label": {"0": "person", "1": "car", '
    '"2": "traffic light"}}',
    "label2id.json": '{"traffic light": 2, "person": 0, "car": 1}',
    "names.csv": "person\ncar\ntraffic light\n",
    "header.csv": "name\nperson\ncar\ntraffic light\n",
    "columns.csv": "id,Name,supercategory\n3,traffic light,x\n1,person,y\n2,car,z\n",
    "colors.csv": "name,r,g,b\nperson,192,96,96\ncar,0,0,1\ntraffic light,1,1,1\n",
    "excel.csv": '\ufeff"Class name";"Color"\r\n"person";"#c06060"\r\n"car";""\r\n'
    '"traffic light";""\r\n',
    "tabs.tsv": "name\tid\nperson\t0\ncar\t1\ntraffic light\t2\n",
    "numbered.txt": "1. person\n2. car\n3. traffic light\n",
    "brackets.txt": "1) person\n2) car\n3) traffic light\n",
    "objectInfo.txt": "Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t5\t6\tperson\n2\t0.1\t7\t8\tcar\n"
    "3\t0.1\t9\t9\ttraffic light\n",
    "colors_first.csv": "# note\ncolor,name\n#c06060,person\n# note\n,car\n#00ff00,traffic light\n",
    "keypoints.pbtxt": 'item { id: 1 name: "person" keypoints { id: 3 label: "nose" } }\n'
    'item { name: "n2" display_name: "car" id: 2 keypoints { id: 4 } }\n'
    'item { id: 3 name: "traffic light" }  # {\n',
    "short_color.xml": '<View><Label value="person" background="#fff"/>'
    '<Label value="car"/><Label value="traffic light"/></View>',
    "comments.csv": "# street\n\nperson\n\n  \ncar\n# more\ntraffic light\n",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_other_programs(tmp_path, name, encoding):
    if encoding == "utf-16" and name == "cvat.xml":
        pytest.skip("the file says that it is UTF-8")
    path = tmp_path / name
    path.write_text(FILES[name].lstrip("\ufeff"), encoding=encoding)
    vocabulary = Vocabulary.parse(str(path))
    assert list(vocabulary.display_names) == SAME
    assert Vocabulary.parse(path) == vocabulary
    colored = ("cvat", "label_studio.xml", "labelmap.txt", "colors", "excel.csv")
    if name.startswith(colored):
        assert vocabulary.colors[0] == (192, 96, 96)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "sky\ncar,automobile,motor car\n"),
        ("a.csv", "sky;\ncar;automobile;motor car\n"),
        ("a.tsv", "sky\ncar\tautomobile\tmotor car\n"),
        ("a.csv", 'name,synonyms\nsky,\ncar,"automobile, motor car"\n'),
        ("a.csv", "name,synonyms\nsky\ncar,automobile,motor car\n"),
        ("a.csv", "id,name,synonyms\n5,car,automobile|motor car\n2,sky,\n"),
        ("a.txt", "sky\ncar，automobile；motor car"),
        ("objectInfo.csv", "Idx,Ratio,Name\n1,0.2,sky\n2,0.1,car;automobile;motor car\n"),
        ("objectInfo.txt", "Idx\tRatio\tName\n1\t0.2\tsky\n2\t0.1\tcar, automobile, motor car\n"),
        ("names.csv", 'id,names\n0,sky\n1,"car, automobile, motor car"\n'),
        ("a.yaml", "- sky\n- [car, automobile, motor car]"),
        ("a.yaml", "categories:\n- name: sky\n- {name: car, synonyms: [automobile, motor car]}\n"),
    ],
)
def test_synonyms(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.synonyms == (("sky",), ("car", "automobile", "motor car"))


def test_strings_in_a_label_map_may_contain_signs(tmp_path):
    path = tmp_path / "a.pbtxt"
    path.write_text('item { id: 1 name: "n1" display_name: "dog #1 {x}" }\n')
    assert Vocabulary.from_file(path).display_names == ("dog #1 {x}",)
    path.write_text('item { id: 1 name: "dog" ')
    with pytest.raises(VocabularyError, match="a.pbtxt .*braces do not match"):
        Vocabulary.from_file(path)


def test_a_cell_of_a_table_may_contain_a_line_break(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('name,note\ncar,"first\n# second"\nsky,\n')
    assert Vocabulary.from_file(path).display_names == ("car", "sky")


def test_ids_order_the_categories_and_are_explained(tmp_path, caplog):
    path = tmp_path / "coco.json"
    path.write_text(FILES["coco.json"])
    categories = read_categories(path)
    assert [(c.name, c.raw_id, c.train_id) for c in categories] == [
        ("person", 1, 0),
        ("car", 3, 1),
        ("traffic light", 10, 2),
    ]
    assert categories[0].color == (220, 20, 60)
    assert "id 1 is category 0, id 10 is category 2" in caplog.text
    assert str(path) in caplog.text
    caplog.clear()
    (tmp_path / "notes.json").write_text(FILES["notes.json"])
    read_categories(tmp_path / "notes.json")
    assert not caplog.records  # the ids are the numbers of the categories


def test_words_of_yaml_stay_words(tmp_path):
    (tmp_path / "a.yaml").write_text("names: [yes, no, on, 12, null, 2001-01-01]\n")
    names = Vocabulary.from_file(tmp_path / "a.yaml").display_names
    assert names == ("yes", "no", "on", "12", "null", "2001-01-01")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "the id 1"),
        ("a.json", '{"categories": [{"id": 1, "name": "a"}, {"name": "b"}]}', "id of 'b'"),
        ("a.json", '{"0": "a", "0": "b"}', "'0' occurs twice"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a": {"b": 1}}', "must contain"),
        ("a.json", '["a", NaN]', "category 1"),
        ("a.yaml", "names: {0: a, 0: b}", "'0' occurs twice"),
        ("a.yaml", "nc: 3\nnames: [a, b]", "'nc' is 3, but there are 2"),
        ("a.yaml", "names: [a, b", "not valid YAML"),
        ("a.yaml", "? [a]\n: b", "not a string"),
        ("a.yaml", "&a [*a]", "YAML"),
        ("a.yaml", "train: images\nval: images", "must contain"),
        ("a.yaml", "names: data/obj.names", "must contain"),
        ("a.csv", "Animal,64,128,64\nArchway,192,0,128\n", "row 1: '64' .* header"),
        ("a.csv", "0,person\n1,car\n", "row 1: '0' .* header"),
        ("a.csv", "car,auto,van\nbus;coach\n", "row 2: 'bus;coach'"),
        ("a.csv", 'sky\n"tree\n', "not a valid table"),
        ("a.csv", "name,id\nsky,1,2\n", "3 cells"),
        ("a.csv", "name,id\nsky,1\n,2\n", "empty name"),
        ("a.csv", "name,color\nsky,blueish\n", r"\('sky'\): the colour must be .* got 'blueish'"),
        ("a.csv", "name\n", "no category"),
        ("a.txt", "images/1.jpg\nimages/2.jpg\n", "line 1: 'images/1.jpg' looks like a file"),
        ("a.txt", "a\0b\nc", "not text"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a", "UTF-8"),
        ("a.xml", "<View><Label/></View>", "empty name"),
        ("a.xml", '<View><Label value="sky" background="var(--sky)"/></View>', "the colour must"),
        ("a.xml", "<View/>", "no <Label"),
        ("a.xml", "<View>", "not valid XML"),
        ("a.xml", '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "document type"),
        ("a.pbtxt", "item { name: 'a' }", "an id and a name"),
        ("a.pbtxt", "", "no category"),
        ("a.txt", "", "no category"),
        ("a.txt", "sky\ntree,\n", "line 2"),
        ("a.txt", "sky\ncaf\xe9\n".encode("latin-1"), r"is not UTF-8 text \(line 2\): save it"),
        ("a.txt", "sky\nsky\n", "'sky'"),
        ("a.txt", b"sky\n\xff\xfe\n", "UTF-8"),
        ("a.json", "{", "JSON"),
        ("a.json", "3", "categories"),
        ("a.json", "[]", "no category"),
        ("a.json", '[{"nam": "sky"}]', "category 0"),
        ("a.json", '[{"name": "sky", "colour": [0, 0, 0]}]', "'colour'"),
        ("a.json", '[{"name": "sky", "train_id": 1}]', "train_id is 1"),
        ("a.json", '[{"name": "sky", "color": [0, 0]}]', "colour of 'sky'"),
        ("a.doc", "sky", "must end in"),
        ("a.txt", "sky; tree; car", "only one line"),
        ("a.txt", "'sky'\n\"car, automobile\"\n", "line 2: the quotes"),
        ("a.names", "“car, automobile”\nsky\n", "line 1: the quotes"),
        ("a.csv", "sky,tree,road\n", "only one row"),
    ],
)
def test_invalid_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VocabularyError, match=message) as error:
        Vocabulary.from_file(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 600


def test_all_duplicates_of_a_file_are_named(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("sky\ntree\nsky\ncar\ntree\nsky\n")
    with pytest.raises(VocabularyError, match="0, 2 and 5 are 'sky'; 1 and 4 are 'tree'"):
        Vocabulary.from_file(path)


def test_a_yaml_file_creates_no_objects_and_has_no_aliases(tmp_path):
    path = tmp_path / "names.yaml"
    path.write_text(f"names: !!python/object/apply:os.system ['touch {tmp_path}/run']\n")
    Vocabulary.from_file(path)
    assert not (tmp_path / "run").exists()
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join([*levels, "names: [*a11, *a11]"]))
    with pytest.raises(VocabularyError, match="aliases"):
        Vocabulary.from_file(path)


_fragments = st.one_of(
    st.sampled_from("name names: id color categories sky car 0 1 -1 null true 1e999".split()),
    st.sampled_from(["<Label value=", "/>", "<View>", "</View>", "&#0;", "item {", "::", "!!str "]),
    st.sampled_from(["64,128,64", "#ff0000", "rgb(1,2,3)", "red", "r,g,b", "<<: ", "&a ", "*a"]),
    st.sampled_from([": ", "- ", "? ", "\n", "\n  ", "\t", "\0", "\ufeff", "\x85", "\u2028"]),
    st.sampled_from(list("[]{}\"'#|%@,;")),
)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(READERS)),
    st.one_of(
        st.lists(_fragments, max_size=30).map(lambda parts: "".join(parts).encode()),
        st.sampled_from(sorted(FILES.values())).flatmap(
            lambda text: st.tuples(
                st.integers(0, len(text)), st.integers(0, 9), st.lists(_fragments, max_size=3)
            ).map(lambda cut: (text[: cut[0]] + "".join(cut[2]) + text[sum(cut[:2]) :]).encode())
        ),
        st.binary(max_size=60),
    ),
)
def test_only_vocabulary_errors_escape(tmp_path_factory, suffix, content):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        vocabulary = Vocabulary.from_file(path)
    except VocabularyError as error:
        assert str(path) in str(error)
    else:
        assert len(vocabulary) > 0 and all(vocabulary.display_names)


def test_quotation_marks_around_names_are_removed(tmp_path):
    (tmp_path / "a.txt").write_text('"traffic light"\n\'dog\', "hound"\nmen\'s shoe\n')
    expected = (("traffic light",), ("dog", "hound"), ("men's shoe",))
    assert Vocabulary.from_file(tmp_path / "a.txt").synonyms == expected
