"""What the documentation shows of the embedded models: a list of commands, and what each makes.

``python docs/experiments/measured.py`` makes all of it, in hours of one core; names of steps, or
``images`` or ``tables``, make only these, after the steps that they read. Each runs in a folder of
its own below ``measured``, which is not kept in the repository. A step that is made is not made
again until its command changes or its folder is deleted; one that was interrupted goes on. Images
and tables are put where they are shown; numbers in prose are put there by a person, who reads the
sentences next to them against ``measured/STEP/printed.txt``.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent
ROOT = DOCS.parent
OUT = HERE / "measured"
BOTH = ("vit", "resnet")
ALL = (*BOTH, "siglip")
MEASUREMENTS = "appendix/measurements.md"


@dataclass(frozen=True)
class Step:
    """A command, and the table or figure that it makes.

    Args:
        name: of its folder below ``measured``.
        commands: lines of a shell, or Python if ``python``, run in that folder.
        image: a file there, which becomes ``docs/images/NAME.jpg`` or ``.png``.
        side: the longer side of that in pixels; None: as it is.
        page: the page of the documentation that shows the table that is printed: from
            ``tables/NAME.csv`` beside it, if it names that file, else under the marker of the step.
        after: the steps whose folders it reads.
        python: whether the commands are Python.
    """

    name: str
    commands: str
    image: str | None = None
    side: int | None = None
    page: str | None = None
    after: tuple[str, ...] = ()
    python: bool = False

    @property
    def folder(self) -> Path:
        """Where it is made."""
        return OUT / self.name

    def is_made(self) -> bool:
        """Whether its folder holds what these commands gave."""
        return self._is_begun() and (self.folder / "made").exists()

    def _is_begun(self) -> bool:
        return _read(self.folder / "commands") == self.commands

    def make(self) -> None:
        """Run the commands; an evaluation or a study that was interrupted goes on.

        Raises:
            subprocess.CalledProcessError: a command failed.
        """
        if not self._is_begun():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / "commands").write_text(self.commands)
        scripts = Path(sys.executable).parent  # captum-clip is there, on whatever path
        path = os.pathsep.join([str(scripts), os.environ["PATH"]])
        command = [sys.executable, "-c"] if self.python else ["bash", "-euc"]
        with (self.folder / "printed.txt").open("w", encoding="utf-8") as printed:
            subprocess.run(
                [*command, self.commands],
                cwd=self.folder,
                env={
                    **os.environ,
                    "PATH": path,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
                    "MPLBACKEND": "Agg",
                },
                stdout=printed,
                check=True,
            )
        self.show()
        (self.folder / "made").touch()

    def show(self) -> None:
        """Put what the documentation shows where it looks for it."""
        if self.image is not None:
            source = self.folder / self.image
            target = DOCS / "images" / (f"{self.name}.jpg" if self.side else f"{self.name}.png")
            if self.side is None:
                shutil.copyfile(source, target)
            else:
                shown = Image.open(source).convert("RGB")
                shown.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
                shown.save(target, quality=90, optimize=True)
        if self.page is not None:
            page, printed = DOCS / self.page, _read(self.folder / "printed.txt")
            text, marker = page.read_text(encoding="utf-8"), f"<!-- measured: {self.name} -->\n"
            if f":file: tables/{self.name}.csv\n" in text:
                target = page.parent / "tables" / f"{self.name}.csv"
                target.parent.mkdir(exist_ok=True)
                with target.open("w", encoding="utf-8", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows(cells_of(printed))
            else:
                before, after = text.split(marker)
                rest = re.sub(r"\A(\|.*\n)+", "", after)
                page.write_text(before + marker + printed + rest, encoding="utf-8")


def cells_of(printed: str) -> list[list[str]]:
    """The rows of a Markdown table, the header first."""
    header, _, *rows = (line for line in printed.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in (header, *rows)]


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def code(page: str, *markers: str) -> str:
    """Join the Python blocks of a page that contain one of the markers; without any, all."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    plain = [block for block in blocks if not block.startswith(">>>")]
    return "\n".join(block for block in plain if not markers or any(m in block for m in markers))


def evaluation(
    name: str,
    model: str,
    options: str = "",
    program: str = "captum-clip evaluate",
) -> Step:
    """``captum-clip evaluate`` of one model, all methods unless the options name some."""
    options += "" if "--method" in options else " --method all"
    options += "" if "--images" in options else " --images 500 --slow-images 64"
    after: tuple[str, ...] = ()
    path = f"demo/{model}"
    if model == "shortcut":
        path = "../../shortcut/model"
    elif model.startswith("second"):
        # a model of another seed, which a step trains
        path, after = f"../trained_{model}/model", (f"trained_{model}",)
    return Step(name, f"{program} --model {path} {options} --threads 1 -o out", after=after)


def recommended(model: str) -> str:
    """What the page recommends of `removal`; a ResNet's pool has no readers."""
    return "removal:share=None" if "resnet" in model else "removal:readers=8,stride=2"


def figure(name: str, command: str, side: int, *after: str) -> Step:
    """``captum-clip figure``."""
    line = f"captum-clip figure {command} -o {name}.png"
    return Step(f"figure_{name}", line, f"{name}.png", side, after=after)


ARTEMIS = "python ../../artemis.py"
MAMOOLER = "--method mamooler"


def paintings(name: str, options: str = "") -> Step:
    """The demo's own ArtEmis, a probe of each model fitted on it, and where their maps point."""
    lines = [f"{ARTEMIS} write art {options}"]
    for model in BOTH:
        probe = f"--model demo/{model}"
        held_out = "art/held_out"
        lines += [
            f"captum-clip emotions fit art {probe} -o {model}.safetensors --test {held_out}",
            f"{ARTEMIS} check {held_out} {probe} --emotions {model}.safetensors {MAMOOLER}",
        ]
    return Step(name, "\n".join(lines))


def with_probes(data: str) -> str:
    """Options for both models with the probes of a step of paintings."""
    return " ".join(f"--model demo/{m} --emotions ../{data}/{m}.safetensors" for m in BOTH)


def study(name: str, data: str, preset: str) -> Step:
    """``captum-clip study`` of such paintings."""
    preset, _, options = preset.partition(" ")
    line = f"captum-clip study {preset} ../{data}/art/images {options} -o out"
    return Step(name, line, after=(data,))


def taken(name: str, step: str, image: str, side: int | None = None) -> Step:
    """An image that another step made next to its own."""
    return Step(name, "", f"../{step}/{image}", side, after=(step,))


def table(name: str, page: str, *after: str) -> Step:
    """A table made of what other steps measured."""
    return Step(name, f"python ../../tables.py {name}", page=page, after=after)


EXAMPLES = "../../../examples"
SCREENSHOT = "python ../../../screenshot.py"
TRAINING = "python ../../demo_models.py evaluate"
REPORTS = "--method all-grad --method attention-grad-cam --method last-grad"
ON_BOTH = "--model demo/vit --model demo/resnet"
BY_KIND = ["amusement", "anger", "disgust", "sadness", "awe", "contentment", "excitement", "fear"]
PARTS = ("effects", "evaluation", "right_map", "removal", "rivals_effects")
"""Steps that measure all of a model: effects, the rest, options of methods."""
FURTHER = {
    "vit": "last-grad direct:baseline=mean direct:depth=token legrad:layers=all "
    "patches:attention=qq patches:attention=kk",
    "resnet": "direct:baseline=mean grad-cam:attention=detached",
    "siglip": "conservative direct:baseline=mean",
}
"""Options of the methods that `all` does not name."""
REMOVALS = "removal:share=None removal:stride=2 removal:readers=8,stride=2"
"""The same of removal, where three copies are told apart; a ResNet's pool has no readers."""
OCCLUSION = "occlusion:fill={},side=3,windows={}"
RIVALS = [
    *(OCCLUSION.format("ring", windows) for windows in (9, 25, 49)),
    *(OCCLUSION.format("mean", windows) for windows in (9, 49)),
    OCCLUSION.format("blur", 49),
]
"""Occlusion of windows; measured after the others, on the same scenes."""
SLOW_TASKS = "localization signs words grid perturbation faithfulness sanity"
RANKED = {
    "vit": "direct conservative all-grad last-grad attention-grad-cam legrad grad-eclip patches "
    "rollout",
    "resnet": "direct grad-cam grad-cam:attention=detached",
}
"""What the second models are measured with."""
PAIR_METHODS = {
    model: "--method direct --method random" + " --method conservative" * (model != "resnet")
    for model in ALL
}
BOTH_SCENES = """
from captum_clip import explain
from captum_clip.demo.scenes import draw_scene
both = draw_scene(3, objects=["horse", "dog"]).image
other = draw_scene(8, objects=["dog", "donut"]).image
"""
WITH_SCENE = "cp ../demo/scene.jpg .\ncaptum-clip explain scene.jpg "
README = {
    "readme": '"a horse" "a dog" -m demo/vit -o horse.png',
    "html": '"a horse and a dog" --side pairs -m demo/vit -o horse.html',
    "against": '"a horse" --against "a dog" -m demo/vit -o against.png',
}
"""Lines of README on the scene that the demo leaves."""
TAGS = ("shortcut", "shortcut-object", "shortcut-other")
STEPS = (
    # images
    Step("scenes", code("start.md", "scenes.jpg"), "scenes.jpg", 1100, python=True),
    *(
        Step(
            name,
            code("start.md", "scenes.jpg", f"{name}.jpg"),
            f"{name}.jpg",
            side,
            python=True,
        )
        for name, side in (("contrast", 700), ("models", 1000), ("classes", 1000))
    ),
    *(
        Step(
            name,
            code("figures.md", "photo = draw_scene", f"{name}.png"),
            f"{name}.png",
            None if name == "cutout" else 900,
            python=True,
        )
        for name in ("column", "frames", "slide", "cells", "cutout")
    ),
    Step("demo", "captum-clip demo", "captum-clip-demo.jpg", 1629),
    Step("readme", WITH_SCENE + README["readme"], "horse.png", 1000, after=("demo",)),
    Step(
        "html",
        f"{WITH_SCENE}{README['html']}\n{SCREENSHOT} horse.html horse",
        "html.png",
        1000,
        after=("demo",),
    ),
    Step(
        "against",
        WITH_SCENE + README["against"],
        "against.png",
        1000,
        after=("demo",),
    ),
    Step(
        "methods",
        'cp ../demo/scene.jpg .\ncaptum-clip figure compare scene.jpg "a horse" -m demo/vit '
        "--method all-grad --method legrad:layers=all --method conservative --method direct "
        "--method removal -o methods.png",
        "methods.png",
        1300,
        after=("demo",),
    ),
    Step("app", SCREENSHOT, "app.png", 1280),
    Step(
        "head_texts",
        "python ../../head_texts.py draw scenes\n"
        "captum-clip heads scenes -m demo/vit --top 5 -o out",
        "out/heads.png",
        1100,
    ),
    Step(
        "confusion",
        "python ../../change.py draw cats\n"
        "captum-clip change cats --from 'a cat' --to 'a dog' -m demo/vit -m ../../shortcut/model "
        "--top 3 -o out",
        "out/change.png",
        1000,
    ),
    taken("signs", "demo", "captum-clip-demo-signs.jpg", 1216),
    Step(
        "text",
        code("figures.md", "horse.png") + "from captum_clip import explain\n"
        "texts = ['a horse and a dog', 'a dog, an apple and a car']\n"
        "explain('horse.png', texts, model='demo/vit', side='both').save('text.png')\n",
        "text.png",
        945,
        python=True,
    ),
    Step(
        "pairs",
        BOTH_SCENES + "explain(both, 'a horse and a dog', model='demo/vit', side='pairs')"
        ".save('pairs.png')\n",
        "pairs.png",
        1300,
        python=True,
    ),
    Step(
        "matches",
        BOTH_SCENES + "explain(both, reference=other, model='demo/vit', side='pairs')"
        ".save('matches.png')\n",
        "matches.png",
        700,
        python=True,
    ),
    Step(
        "shortcut",
        "python ../../tag_maps.py figure shortcut.jpg",
        "shortcut.jpg",
        1906,
    ),
    Step("copies", "python ../../copies.py figure copies.png", "copies.png", 1400),
    figure(
        "compare",
        f'compare "a dog" grass --scene 0:horse,dog {ON_BOTH}',
        1400,
    ),
    Step(
        "figure_heads",
        "python ../../../gallery/plot_11_heads.py",
        "heads.png",
        1300,
    ),
    figure("average", "average ../corners_vit/out", 700, "corners_vit"),
    figure(
        "average_emotions",
        "average ../art_study/out " + " ".join(f"--target {name}" for name in BY_KIND),
        1300,
        "art_study",
    ),
    taken("evaluation_curves", "curves_resnet", "out/curves_mean_predicted.png"),
    # what others read
    evaluation(
        "curves_resnet",
        "resnet",
        "--data demo-objects --task perturbation --images 150 --method grad-cam --method direct",
    ),
    paintings("art"),
    paintings("thousand", "--paintings 1000"),
    study("art_study", "art", f"emotions {with_probes('art')} {MAMOOLER}"),
    study("study", "thousand", f"emotions {with_probes('thousand')} {MAMOOLER} --value-entropy"),
    study(
        "corners_vit",
        "art",
        f'statistics "a sad face" sky grass --model demo/vit {REPORTS}',
    ),
    # tables
    *(Step(f"recall_{model}", f"{TRAINING} {model}") for model in ALL),
    *(Step(f"broad_{model}", f"{TRAINING} {model} --broad --scenes 200") for model in ALL),
    Step("recall_shortcut", f"{TRAINING} shortcut --scenes 150"),
    *(
        evaluation(
            f"evaluation_{model}",
            model,
            " ".join(f"--task {task}" for task in SLOW_TASKS.split()),
        )
        for model in ALL
    ),
    *(
        Step(
            f"trained_second-{model}",
            f"python ../../demo_models.py train {model} --scenes broad --seed 1 "
            "--checkpoint training --export model",
        )
        for model in BOTH
    ),
    *(
        evaluation(
            f"second_{model}",
            f"second-{model}",
            "--data demo --data demo-objects --data demo-mosaics --task localization "
            "--task perturbation --task faithfulness --task words "
            + " ".join(f"--method {name}" for name in RANKED[model].split()),
        )
        for model in BOTH
    ),
    *(
        evaluation(
            f"second_effects_{model}",
            f"second-{model}",
            "--data demo --task effect "
            + " ".join(f"--method {name}" for name in RANKED[model].split())
            + " --method direct:depth=token" * (model == "vit"),
        )
        for model in BOTH
    ),
    *(evaluation(f"effects_{model}", model, "--task effect") for model in ALL),
    *(
        evaluation(
            f"right_map_{model}",
            model,
            "--task localization --task effect --task words "
            + " ".join(f"--method {name}" for name in FURTHER[model].split()),
        )
        for model in ALL
    ),
    *(
        evaluation(
            f"copies_{model}",
            model,
            "--data demo-thirds --data demo-identical --images 300 --slow-images "
            f"{16 if 'second' in model else 64} --method all "
            + " ".join(
                f"--method {name}"
                for name in f"{FURTHER[model.removeprefix('second-')]} {REMOVALS}".split()
                if "readers" not in name or "resnet" not in model
            ),
        )
        for model in (*ALL, *(f"second-{model}" for model in BOTH))
    ),
    *(
        evaluation(
            f"{name}_{model}",
            model,
            f"{data} --reference {recommended(model)} "
            + " ".join(f"--method {method}" for method in [recommended(model), *methods]),
        )
        for model in ALL
        for name, data, methods in (
            (
                "rivals_copies",
                "--data demo-thirds --data demo-identical --images 300 --slow-images "
                f"{128 if model == 'resnet' else 300}",
                RIVALS,
            ),
            (
                "rivals_effects",
                "--data demo --task effect --task signs --images 100 --slow-images 100",
                RIVALS,
            ),
            (
                "removal",
                "--task localization --task effect --task signs --task words --task perturbation "
                "--task faithfulness",
                ["removal"],
            ),
        )
    ),
    *(
        evaluation(
            f"pairs_{model}",
            model,
            f"--data demo --task pairs {PAIR_METHODS[model]}",
        )
        for model in ALL
    ),
    *(
        evaluation(f"image_{model}", model, "--against image --task localization --task signs")
        for model in BOTH
    ),
    *(
        evaluation(
            f"{part}_{model}",
            model,
            f"--data {part} --task localization --images 150 --slow-images 50",
            program="python ../../evaluate_shortcut.py",
        )
        for part in TAGS
        for model in ("shortcut", "vit")
    ),
    Step(
        "tag_pairs",
        "python ../../tag_maps.py pairs",
        page="appendix/shortcut.md",
    ),
    *(
        Step(
            f"losses_{model}",
            f"python ../../removals.py losses demo/{model} --scenes {scenes}",
            page="appendix/equations.md",
        )
        for model, scenes in (("vit", 150), ("siglip", 80))
    ),
    *(
        Step(f"prices_{model}", f"python ../../prices.py count {model} {names}")
        for model in ALL
        for names in [
            " ".join(
                name
                for name in (
                    "all",
                    *f"{FURTHER[model]} {REMOVALS}".split(),
                    *RIVALS,
                )
                if "readers" not in name or model != "resnet"
            )
        ]
    ),
    Step(
        "prices",
        "python ../../prices.py figure prices.png",
        "prices.png",
        page=MEASUREMENTS,
        after=tuple(
            f"{step}_{model}" for step in ("copies", "rivals_copies", "prices") for model in ALL
        ),
    ),
    Step("map_and_rest", "python ../../scores.py parts", page=MEASUREMENTS),
    Step(
        "single_deletion",
        "python ../../single_deletion.py demo/vit demo/resnet demo/siglip",
        page=MEASUREMENTS,
    ),
    Step(
        "attack",
        "python ../../attack.py demo/vit demo/siglip",
        page=MEASUREMENTS,
    ),
    Step("head_spans", "python ../../head_texts.py spans", page="appendix/heads.md"),
    Step(
        "head_ablation",
        "python ../../head_texts.py ablation",
        page="appendix/heads.md",
    ),
    *(
        Step(name, f"python ../../change.py {what}", page="appendix/heads.md")
        for name, what in (("change", "measure"), ("change_heads", "check"))
    ),
    Step("repair", "python ../../repair.py", page="appendix/shortcut.md"),
    Step(
        "repair_differences",
        "python ../../repair.py differences --folder ../repair/out",
        page="appendix/shortcut.md",
        after=("repair",),
    ),
    Step("repair_sweep", "python ../../repair.py sweep", page="appendix/shortcut.md"),
    Step("hints", f"python {EXAMPLES}/hints.py", page=MEASUREMENTS),
    Step("class_hints", f"python {EXAMPLES}/class_hints.py", page=MEASUREMENTS),
    Step("label_maps", f"python {EXAMPLES}/label_maps.py scenes", page=MEASUREMENTS),
    Step(
        "spread",
        f"python {EXAMPLES}/label_maps.py scenes --spread .7 1",
        page=MEASUREMENTS,
    ),
    Step("image_sizes", "python ../../image_sizes.py", page=MEASUREMENTS),
    *(
        Step(
            f"robustness_{model}",
            f"python ../../robustness.py demo/{model}",
            page=MEASUREMENTS,
        )
        for model in ALL
    ),
    # a person takes its figures over into layers_text.csv and layers_share.csv
    Step("layers", code("appendix/claims.md", "Figure 2"), python=True),
    Step(
        "truths",
        "python ../../truths.py demo/vit demo/resnet demo/siglip",
        page=MEASUREMENTS,
    ),
    # needs `pip install exclip shapiq`
    Step("pair_peers", "python ../../pair_peers.py --scenes 100", page=MEASUREMENTS),
    Step(
        "text_words",
        "python ../../word_weights.py demo/vit demo/resnet",
        page=MEASUREMENTS,
    ),
    Step("cosines", "python ../../scores.py cosines demo/vit demo/resnet", page=MEASUREMENTS),
    # tables of these
    table("recall", "appendix/embedded.md", *(f"recall_{model}" for model in ALL)),
    table("broad", "appendix/embedded.md", *(f"broad_{model}" for model in ALL)),
    table("pointing", "appendix/embedded.md", *(f"evaluation_{model}" for model in ALL)),
    table(
        "excerpt",
        MEASUREMENTS,
        *(f"{step}_{model}" for step in PARTS for model in ALL),
    ),
    table(
        "rankings",
        MEASUREMENTS,
        *(f"{step}_{m}" for step in (*PARTS, "second", "second_effects") for m in BOTH),
    ),
    table("pair_estimators", MEASUREMENTS, *(f"pairs_{model}" for model in ALL)),
    table(
        "against_images",
        "appendix/claims.md",
        *(f"{step}_{model}" for step in ("image", "evaluation") for model in BOTH),
    ),
    table(
        "copies_ranks",
        MEASUREMENTS,
        *(f"{step}_{m}" for step in ("copies", "rivals_copies", "prices") for m in ALL),
        *(f"copies_second-{model}" for model in BOTH),
    ),
    table("rivals", MEASUREMENTS, *(f"{s}_{m}" for s in ("rivals_copies", "prices") for m in ALL)),
    table(
        "right_map",
        MEASUREMENTS,
        *(f"{step}_{model}" for step in PARTS for model in ALL),
    ),
    *(
        table(f"shortcut_{part}", "appendix/shortcut.md", "recall_shortcut")
        for part in ("effects", "named", "recall")
    ),
    table(
        "tag_pointing",
        "appendix/shortcut.md",
        *(f"{part}_{model}" for part in TAGS for model in ("shortcut", "vit")),
    ),
    table(
        "tag_energy",
        "appendix/shortcut.md",
        *(f"{part}_{model}" for part in TAGS[:2] for model in ("shortcut", "vit")),
    ),
    table("emotions_table", "appendix/data_sets.md", "study"),
    table("emotion_pointing", "appendix/data_sets.md", "thousand"),
)


def main() -> None:
    """Make the steps that are named, or all, each after those it reads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("steps", nargs="*", help="names of steps, 'images' or 'tables'")
    parser.add_argument("--list", action="store_true", help="print the steps and leave it at that")
    options = parser.parse_args()
    by_name = {step.name: step for step in STEPS}
    kinds = {
        "images": [step.name for step in STEPS if step.image is not None],
        "tables": [step.name for step in STEPS if step.image is None],
    }
    pending = [n for name in options.steps or by_name for n in kinds.get(name, [name])]
    wanted: dict[str, Step] = {}

    def want(name: str) -> None:
        for other in by_name[name].after:
            want(other)
        wanted.setdefault(name, by_name[name])

    for name in pending:
        want(name)
    for step in wanted.values():
        made = step.is_made()
        print(f"{step.name:<22} {'made' if made else ''}", flush=True)
        if not made and not options.list:
            step.make()


if __name__ == "__main__":
    main()
