"""Wrong lines: each is answered by one sentence, before a model is loaded or a file written."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from captum_clip.cli import main

LINES = {
    # click
    "explian": "'explian'; did you mean 'explain'? (see captum-clip --help)",
    "models --vocabluary": "did you mean --vocabulary? (see captum-clip models --help)",
    "explain photo.jpg a --modle=x b": "did you mean --model? (see captum-clip explain --help)",
    "study statistic photos -o o": "did you mean statistics? (see captum-clip study --help)",
    "explain photo.jpg a --side imge": "'imge' is not one of",
    "demo x": "unexpected extra argument",
    "explain photo.jpg a --model": "'--model' requires an argument",
    "explain": "Missing argument",
    "figure": "Missing argument",
    "emotions": "Missing command",
    "search photos a --top many -o o": "Invalid value for '--top'",
    f"explain photo.jpg a --side {'a' * 4000}": "'" + 79 * "a" + "...",
    f"explain photo.jpg a --x {'b ' * 900}": "No such option: --x",
    # explain
    "explain none.jpg a": "there is no image file none.jpg",
    "explain 'a horse' photo.jpg": "'a horse' is not an image; explain takes images, then texts",
    "explain photo.jpgg 'a horse'": "'photo.jpgg' does not exist; explain takes images, then texts",
    "explain photo.jpg --side pairs --image photo.jpg --image other.png": "one --image, got 2",
    "explain broken.png a": "broken.png",
    "explain photo.jpg": "expected a TEXT, --emotions FILE or --image FILE",
    "explain photo.jpg ' '": "the text ' ' is empty",
    "explain photo.jpg a -m demo/vit -m b --side text": "--side text works with one --model",
    "explain photo.jpg -m a -m b --emotions e.safetensors": (
        "--emotions works with one --model; run each"
    ),
    "explain photo.jpg -m a -m b --classes c.txt": "--classes works with one --model",
    "explain photo.jpg a -m a -m b --regions r": "--regions works with one --model",
    "explain photo.jpg a -m a -m b -o a.html": "-o a.html works with one --model",
    "explain photos a -m a -m b": "a folder works with one --model; run each by itself",
    "explain photo.jpg a -o a.gif": "must end in .png, .jpg, .jpeg, .pdf, .svg, .npz",
    "explain photo.jpg a -o none/a.png": "there is no folder none",
    "explain other.png a -o other.png": "would replace the input other.png",
    "explain https://x.org/a.jpg a": "https://x.org/a.jpg is a URL; download the image",
    "explain photo.jpg a --dpi 300 -o a.npz": "a.npz takes no --dpi; leave it out",
    "explain photo.jpg a --colormap jetset": "--colormap: matplotlib knows no color map 'jetset'",
    "explain photo.jpg a --width wide": "--width in inches, or as in 246pt or 8.6cm, got 'wide'",
    "search none.lance a --scale common": "--scale of own, shared or a number above zero",
    "change photos a -m a -m b -o out --alpha 2": "--alpha in [0, 1], got 2.0",
    "explain photo.jpg cat dog --words": "--words need exactly one text, got ['cat', 'dog']",
    "explain photo.jpg a --method lastgrad:heads=paired": "did you mean last-grad?",
    "explain photo.jpg a --method last-grad:x=1": "last-grad has no option 'x'",
    "explain photo.jpg a --method rollout --sign negative": "no negative map; take --sign positive",
    "explain photo.jpg a --threshold 2": "expected otsu, mean or a number in [0, 1), got 2",
    "explain photo.jpg a --side text --regions r": "--regions marks places in the image; leave",
    "explain photo.jpg --image other.png --side pairs --original": "leave --original out",
    "explain photo.jpg --image other.png --side text": "has no words; leave --side text out",
    "explain photo.jpg other.png a -o r.png": "r.png must name a folder",
    "explain photos a -o r.png": "r.png must name a folder",
    "explain photo.jpg a --image-size 0": "expected --image-size of 1 or more, got 0",
    "explain photo.jpg a --side both --words": "--side both explains whole texts",
    "explain photo.jpg a --center": "--center goes with --emotions",
    "explain photo.jpg a --top 2": "--top goes with --classes",
    "explain photo.jpg a --classes c.txt": "--classes FILE replaces TEXTs; leave one",
    "explain photo.jpg --classes c.txt --words": "in the image; leave --words out",
    "explain photo.jpg --classes none.txt": "there is no file none.txt",
    "explain photo.jpg --classes empty.txt": "empty.txt holds no text; write one per line",
    "explain photo.jpg --classes c.txt --top 3": "expected --top up to 2, the classes of c.txt",
    "explain photo.jpg --classes c.txt --template photo": 'expected a template with one "{}"',
    "explain photo.jpg cat dog --against c": "--against needs exactly one text, got ['cat', 'dog']",
    "explain photo.jpg a --against ' '": "the text ' ' is empty",
    "explain photo.jpg a --against b --words": "where in the image; leave --words out",
    "explain photo.jpg --emotions photo.jpg": "photo.jpg is not an emotion probe",
    "explain photos a -o a.npz": "photos is a folder, and each of its images gets its own file",
    "explain photo.jpg other.png a -o a.png": "each of 2 images gets its own file; a.png must",
    "explain photo.jpg photos/../photo.jpg a": "two outputs would be the file photo-",
    "explain photo.jpg a other.png": "other.png is an image; explain takes images, then texts",
    "explain photos a e.safetensors": (
        "e.safetensors is an image; explain takes images or one folder, then texts"
    ),
    "explain photos other.png a": "explain takes images or one folder, then texts",
    "explain photo.jpg --texts none.txt": "there is no file none.txt",
    "explain photo.jpg --texts other.png": "other.png cannot be read as text in UTF-8",
    "explain photos a -o photos": "cannot go into the folder of the images",
    "explain farm/.. a -o farm/none/x.png": "is a folder, and each of its images gets its own file",
    # figure
    "figure comparee photo.jpg a": "did you mean compare?",
    "figure compare": "expected an IMAGE, or --scene SEED",
    "figure compare photo.jpg": "figure compare needs a target: a TEXT, or --image FILE",
    "figure compare photo.jpg horse other.png": "other.png is an image; figure compare takes",
    "figure compare photos photo.jpg": "figure compare takes images or one folder, then texts",
    "figure compare photo.jpg a --target a": "figure compare has no option --target",
    "figure compare photo.jpg a --colormap x": "no color map 'x'",
    "figure average": "needs an output folder of 'captum-clip study'",
    "figure average none": "none holds no finished study",
    "figure average photos": "/photos TEXT -o photos-study' makes one",
    "explain photo.jpg a -m ViTB32": "(did you mean ViT-B/32?). A name is a short name",
    "explain photo.jpg a -m vit": "; the model demo/vit is embedded and needs no network",
    "figure compare a --scene x --model demo/vit": "SEED:THING,THING as in 0:horse, got 'x'",
    "figure compare a --scene 3:unicorn -m demo/vit": (
        "--scene: expected things such as horse or red heart, got 'unicorn'; "
        "'captum-clip models --vocabulary' lists"
    ),
    "figure compare photo.jpg a --method centr -m demo/vit": "--method: expected one of",
    # index, search, study, evaluate, emotions
    "index photos -m a -m b -o o.lance": "index takes one --model, got 2; run each by itself",
    "index none -o o.lance": "there is no folder none",
    "index photos -o o": "expected an index that ends in .lance, got 'o'",
    "index photos -o o.lance --precision int4": "'int4' is not one of",
    "index photos -o o.lance --method x": "--method: expected one of",
    "search photos a": "expected an index that ends in .lance, got 'photos'",
    "search none.lance a": "'captum-clip index FOLDER -o",
    "search none.lance": "expected a TEXT or an --emotion to look for, got none",
    "search none.lance a --emotion awe": "--emotion goes with --emotions",
    "search none.lance --emotions e.safetensors --emotion joy": "'joy'",
    "search none.lance a b --against c": "leave further TEXTs out",
    "search none.lance a --top 0": "Invalid value for '--top'",
    "search none.lance a --weight 0.3": "--weight needs both a TEXT and an --emotion",
    "search none.lance a --weight 2": "Invalid value for '--weight'",
    "study statistics photos -o o": "there is nothing to explain",
    "study statistics none a -o o": "there is no folder",
    "study statistics photos a a -o o": "'a' is given twice",
    "study statistics photos a --method rollout --batch-size 0 -o o": "--batch-size of 1",
    "study emotions photos -o o": "takes an --emotions FILE for each model",
    "study statistics photos a --engine ray --workers 0 -o o": "Ray needs one worker",
    "study statistics photos a -o photos": "cannot go into the folder of the images",
    "study statistics photos a --device abacus -o o": "cannot compute on --device abacus",
    "study statistics photos a --device cpu:0 -o o": "expected cpu or cuda, without a number",
    "evaluate -o o": "scenes drawn for the embedded models, and ViT-B/32 is not one of them",
    "evaluate --model demo/vit --fill gray -o o": "'gray'",
    "evaluate --model demo/vit --images 0 -o o": "expected images of 1 or more, got 0",
    "evaluate --model demo/vit --task x -o o": "expected a task of thirds",
    "evaluate --model demo/vit --method centr -o o": "(did you mean center?)",
    "evaluate --data farm -o o": "there is no data set 'farm'; expected one of demo,",
    "evaluate --model demo/vit": "Missing option '--output'",
    "emotions fit none --model m -o p.safetensors": "there is no folder none",
    "emotions fit photos --model m -o p.pt": "must end in .safetensors",
    "emotions fit photos -m demo/vit --held-out 2 -o p.safetensors": "--held-out in [0, 1)",
    "app --port 70000": "--port 70000: expected a number from 0",
}


@pytest.mark.parametrize(("line", "message"), LINES.items())
def test_a_wrong_line_is_answered_by_one_sentence(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
) -> None:
    monkeypatch.setattr(
        "captum_clip.models.loading._read_model", lambda *_, **__: pytest.fail("was loaded")
    )
    Path("c.txt").write_text("horse\nsky\n")
    Path("empty.txt").write_text("\n")
    before = sorted(here.rglob("*"))
    assert main(shlex.split(line)) == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith("captum-clip: error: ")
    assert message in said
    assert said.count("\n") == 1
    assert len(said) < 800
    assert sorted(here.rglob("*")) == before
    assert os.getcwd() == str(here)
