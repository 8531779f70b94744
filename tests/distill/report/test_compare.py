import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache_tools.errors import ConfigError
from distill.cli.compare import main
from distill.records import Record, Results, merged, read_scores, save_scores
from distill.report.compare import compare_runs, compare_studies
from distill.report.scores import comparable_scores

BASE = Record("student", "student", "t1", "measured", "random", 0, "r2", 0.5, 10)


def run(folder: Path, student: float, teacher: float = 0.6) -> Path:
    records = [
        replace(BASE, system=system, kind=kind, task=task, seed=seed, score=score + 0.01 * seed)
        for system, kind, score in (("student", "student", student), ("maccs", "teachers", teacher))
        for task in ("t1", "t2")
        for seed in (0, 1)
    ]
    (folder / "probes").mkdir(parents=True)
    (folder / "probes" / "results.json").write_text(json.dumps({"records": [asdict(each) for each in records]}))
    return folder


def test_runs_stand_side_by_side_and_teachers_once(tmp_path):
    one, two = run(tmp_path / "one", 0.5), run(tmp_path / "two", 0.7)
    compare_runs([one, two], tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    assert [text.count(f"\n| {name} | 0.") for name in ("**one**", "**two**", "maccs")] == [1, 1, 1]
    assert "| one | beats | +0.200 | +0.200 to +0.200 |" in text
    verdict = "`two`, the best of 2 students by these scores, beats the best teacher, `maccs`, on 2 tasks (+0.100, "
    assert text.splitlines()[2].startswith(verdict)
    page = (tmp_path / "both" / "report.html").read_text()
    assert 0 < page.count("<svg") == text.count("](figures/") == len(list((tmp_path / "both" / "figures").glob("*.png")))
    assert not re.search(r"(src|href)=.?(https?:|/)", page.replace('xlink:href="#', "")), "the page needs something else"


def studied(folder: Path, tasks: dict[str, list[str]], teacher: str, **methods: float) -> Path:
    """The report of a study of two seeds: its tasks with their splits, its methods with their scores."""
    lower = {"own": 0.0, "random": 0.0, "scaffold": 0.1}
    scores = {"untrained": ("untrained", 0.2), teacher: ("teachers", 0.6), "pca": ("pca", 0.7)}
    scores |= {method: ("student", score) for method, score in methods.items()}
    folder.mkdir()
    every = [(system, *each, task, split) for system, each in scores.items() for task in tasks for split in tasks[task]]
    records = [
        replace(BASE, system=system, kind=kind, task=task, split=split, seed=seed, score=score + 0.01 * seed - lower[split])
        for system, kind, score, task, split in every
        for seed in (0, 1)
    ]
    save_scores(folder, records)
    assert read_scores(folder) == records
    return folder


def test_methods_of_several_studies_are_ranked_over_the_tasks_of_all(tmp_path):
    mol = studied(tmp_path / "mol", {"esol": ["random", "scaffold"]}, "maccs", nll=0.5, mse=0.4, odd=0.9)
    text = studied(tmp_path / "text", {"mood": ["own"], "topic": ["own"]}, "minilm", mse=0.5, nll=0.8)
    main(["--studies", str(mol), str(text), "--out", str(tmp_path / "out")])
    assert main(["--studies", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) is None, "what it wrote is read"
    told = (tmp_path / "out" / "report.md").read_text()
    assert "Left out, as not all studies have them. mol: maccs, odd; text: minilm." in told
    assert "| system | mol | text |" in told
    assert "## Every split, seeds averaged" in told
    assert "over seeds;" not in told
    assert "| **nll** | 0.455 | 0.805 |" in told, "half of the molecules' splits lie 0.1 lower"
    assert re.search(r"\| system \| mean .* \| esol<br>r2 \| mood<br>r2 \| topic<br>r2 \|\n", told)
    assert re.search(r"\n\| \*\*nll\*\* \| 0.688 \|  \| 1.33 \| .* \| 0.455 \| 0.805 \| 0.805 \|\n", told)
    assert all(f"\n| {system} | " in told for system in ("**mse**", "untrained", "pca"))
    assert re.search(r"`nll`, the best of 2 students by these scores, \w.* their PCA on 3 tasks", told)


def test_the_scores_that_a_study_kept_make_its_whole_page(tmp_path):
    study = studied(tmp_path / "mol", {"esol": ["random", "scaffold"], "bace": ["random", "scaffold"]}, "maccs", nll=0.5)
    main(["--studies", str(study), "--out", str(tmp_path / "out")])
    assert read_scores(tmp_path / "out") == read_scores(study)
    report = (tmp_path / "out" / "report.md").read_text()
    verdict = "`nll` is below the best teacher, `maccs`, on 2 tasks (-0.100, -0.100 to -0.100)."
    more = "Also, it beats the untrained student; it is below their PCA."
    assert report.startswith(f"# Study mol\n\n{verdict} {more}\n\nScores: `{study}`.\n\n")
    assert re.findall("^## (.*)", report, re.M) == ["Verdict", "Random split, 2 seeds", "Scaffold split, 2 seeds"]
    assert "| maccs (best teacher) | below | -0.100 | -0.100 to -0.100 | -0.100 | -0.100 |\n" in report
    figures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {f"{kind}-{split}" for kind in ("scores", "ranks") for split in ("random", "scaffold")}


def test_kept_means_over_seeds_are_not_called_a_seed(tmp_path):
    (tmp_path / "kept").mkdir()
    records = [replace(BASE, system=system, task=task, seed=-1) for system in ("nll", "mse") for task in ("t1", "t2")]
    save_scores(tmp_path / "kept", records)
    compare_studies([tmp_path / "kept"], tmp_path / "out")
    assert "## Random split, seeds averaged" in (tmp_path / "out" / "report.md").read_text()


def test_studies_that_cannot_stand_together_are_refused(tmp_path):
    one = studied(tmp_path / "one", {"t": ["own"]}, "a", nll=0.5)
    with pytest.raises(ConfigError, match="two studies have a task t"):
        compare_studies([one, studied(tmp_path / "two", {"t": ["own"]}, "b", nll=0.5)], tmp_path / "out")
    with pytest.raises(ConfigError, match="no method stands in all of"):
        compare_studies([one, studied(tmp_path / "three", {"u": ["own"]}, "b", mse=0.5)], tmp_path / "out")
    with pytest.raises(ConfigError, match="no .*scores.csv: expected the folder of a report"):
        compare_studies([one, tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ConfigError, match="have one name"):
        compare_studies([one, tmp_path / "b" / "one"], tmp_path / "out")
    with pytest.raises(SystemExit):
        main([str(one), "--studies", str(one)])
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_scores_otherwise_is_told(tmp_path, caplog):
    runs = run(tmp_path / "one", 0.5), run(tmp_path / "two", 0.7, teacher=0.65)
    _, notes = merged({each.name: [Results.load(each)] for each in runs})
    assert len(notes) == 4
    assert "maccs on t1 has 0.6000 in one run and 0.6500 in" in caplog.text


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="probe the run first with `distill test --run"):
        compare_runs([tmp_path / "none"], tmp_path / "out")
    with pytest.raises(ConfigError, match="two runs are called one"):
        compare_runs([run(tmp_path / "one", 0.5), run(tmp_path / "b" / "one", 0.5)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_were_tested_on_other_rows_are_told(tmp_path, caplog):
    runs = [run(tmp_path / name, 0.5) for name in ("one", "two", "three")]
    for folder in runs[1:]:
        file = folder / "probes" / "results.json"
        file.write_text(file.read_text().replace('"test_rows": 10', '"test_rows": 9'))
    _, warnings = merged({folder.name: [Results.load(folder)] for folder in runs})
    assert warnings == list(dict.fromkeys(warnings)) == [record.message for record in caplog.records], (
        "a line for each task"
    )
    where = f"{runs[1]}, {runs[2]}"
    assert f"t1, random split: tested on 9 rows, another run on 10: {where}" in warnings


def test_means_are_over_tasks_that_all_systems_have(tmp_path):
    one, two = run(tmp_path / "one", 0.8), run(tmp_path / "two", 0.84)
    path = one / "probes" / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({"records": [each for each in found["records"] if each["task"] == "t1"]}))
    records, _ = merged({each.name: [Results.load(each)] for each in (one, two)})
    groups = comparable_scores(records)
    assert {name: (scores.tasks, sorted(scores.systems)) for name, scores in groups.items()} == {
        "random, t1": (["t1"], ["maccs", "one", "two"]),
        "random, t2": (["t2"], ["maccs", "two"]),
    }


def test_a_run_that_is_called_like_another_system_is_refused(tmp_path):
    for name in ("maccs", "pca"):
        with pytest.raises(ConfigError, match=f"a student is called {name}, as another system is"):
            compare_runs([run(tmp_path / name, 0.5), run(tmp_path / f"{name}-other", 0.5)], tmp_path / "out")


@pytest.mark.parametrize("text", ["{", '{"records": [{"what": 1}]}', '{"records": []}', "[]"])
def test_damaged_results_are_told(tmp_path, text):
    folder = run(tmp_path / "one", 0.5)
    (folder / "probes" / "results.json").write_text(text)
    with pytest.raises(ConfigError, match="probe the run again with `distill test --run"):
        compare_runs([folder], tmp_path / "out")


def seeds(folder: Path, scores: dict[str, float]) -> list[Path]:
    """Runs of one student with several seeds, on the same splits; the last one probed itself alone."""
    runs = [run(folder / name, score) for name, score in scores.items()]
    for path in (path / "probes" / "results.json" for path in runs):
        records = [each for each in json.loads(path.read_text())["records"] if each["seed"] == 0]
        if path.parents[1] == runs[-1]:
            records = [each for each in records if each["kind"] == "student"]
        path.write_text(json.dumps({"records": records}))
    return runs


def test_fits_with_several_seeds_are_one_student(tmp_path, capsys):
    runs = seeds(tmp_path, {"a-0": 0.5, "a-1": 0.7, "a-2": 0.9})
    main([*map(str, runs), "--student", "a", "--out", str(tmp_path / "out")])
    records = read_scores(tmp_path / "out")
    assert {(each.system, each.seed) for each in records} == {(name, seed) for name in ("a", "maccs") for seed in range(3)}
    text = (tmp_path / "out" / "report.md").read_text()
    assert "`a` beats the best teacher, `maccs`, on 2 tasks (+0.100, " in text
    assert "| **a** | 0.700 |" in text
    several = run(tmp_path / "b", 0.5)
    with pytest.raises(ConfigError, match=r"b was probed on the splits of seeds \[0, 1\]: expected one"):
        compare_runs([several], tmp_path / "no", student="b")
    with pytest.raises(SystemExit):
        main(["--studies", str(tmp_path / "out"), "--student", "a"])
    assert "--student is a name for runs, not for --studies" in capsys.readouterr().err
