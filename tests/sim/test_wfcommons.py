import copy
import json
from dataclasses import replace

import pytest
import zstandard

from deepflow.errors import ConfigurationError
from deepflow.sim.generators import layered, pipelines, survey
from deepflow.sim.wfcommons import BUILTIN_WORKFLOWS, read_many, read_workflow, write_workflow
from tests.sim.shared_data import WORKFLOWS, needs_workflows


def document():
    """Two tasks, of which one reads the other's first output, and files around them."""
    return {
        "name": "made-up",
        "schemaVersion": "1.5",
        "workflow": {
            "specification": {
                "tasks": [
                    {
                        "name": "split_ID0000001",
                        "id": "split_ID0000001",
                        "parents": [],
                        "children": ["work_ID0000002"],
                        "inputFiles": ["raw", "settings"],
                        "outputFiles": ["part", "log"],
                    },
                    {
                        "name": "work_ID0000002",
                        "id": "work_ID0000002",
                        "parents": ["split_ID0000001"],
                        "children": [],
                        "inputFiles": ["part", "part", "settings"],
                        "outputFiles": ["result"],
                    },
                ],
                "files": [
                    {"id": "raw", "sizeInBytes": 1000},
                    {"id": "settings", "sizeInBytes": 10},
                    {"id": "part", "sizeInBytes": 300},
                    {"id": "log", "sizeInBytes": 7},
                    {"id": "result", "sizeInBytes": 5},
                ],
            },
            "execution": {
                "tasks": [
                    {"id": "split_ID0000001", "runtimeInSeconds": 2.5, "memoryInBytes": 99},
                    {
                        "id": "work_ID0000002",
                        "runtimeInSeconds": 4,
                        "command": {"program": "/usr/bin/work.sh"},
                    },
                ]
            },
        },
    }


def write(folder, content, name="family-site-large-001.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def specified(content):
    return content["workflow"]["specification"]["tasks"]


def executed(content):
    return content["workflow"]["execution"]["tasks"]


def test_tasks_carry_what_the_file_says(tmp_path):
    job = read_workflow(write(tmp_path, document()))
    split, work = job.tasks
    assert (split.key, split.task, split.run_s) == ("split_ID0000001", "split", 2.5)
    assert split.depends_on == ()
    assert split.output_bytes == 300  # `log` is read by nobody, `part` counts once
    assert split.input_bytes == 1010
    assert split.memory_bytes == 99
    assert (work.task, work.run_s, work.depends_on) == ("work", 4.0, ("split_ID0000001",))
    assert work.output_bytes == 0
    assert work.input_bytes == 10  # `part` is a task's output


def test_compressed_file_is_the_same_job(tmp_path):
    plain = read_workflow(write(tmp_path, document()))
    path = tmp_path / "family-site-large-001.json.zst"
    path.write_bytes(zstandard.compress(json.dumps(document()).encode()))
    assert read_workflow(path) == plain


@pytest.mark.parametrize(
    ("name", "flow"),
    [
        ("family-site-large-001.json", "family"),
        ("1000genome-chameleon-10ch-100k-001.json", "1000genome"),
        ("my-flow.json", "my-flow"),
        ("plain.json", "plain"),
    ],
)
def test_flow_is_the_family_of_an_instance_else_the_name_of_the_file(tmp_path, name, flow):
    job = read_workflow(write(tmp_path, document(), name))
    assert (job.flow, job.run) == (flow, name.removesuffix(".json"))


def test_run_and_flow_can_be_given(tmp_path):
    job = read_workflow(write(tmp_path, document()), run="tuesday", flow="mine")
    assert (job.run, job.flow) == ("tuesday", "mine")


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("bowtie2-build_ID0000007", "bowtie2-build"),
        ("made by hand", "work.sh"),
    ],
)
def test_category_is_the_name_without_its_id_else_the_program(tmp_path, name, category):
    content = document()
    specified(content)[1]["name"] = name
    assert read_workflow(write(tmp_path, content)).tasks[1].task == category


def test_category_without_id_and_program_is_the_name_without_its_digits(tmp_path):
    content = document()
    specified(content)[0]["name"] = "split-12"
    assert read_workflow(write(tmp_path, content)).tasks[0].task == "split"


def test_edge_that_only_the_parent_knows_counts(tmp_path):
    content = document()
    specified(content)[1]["parents"] = []
    assert read_workflow(write(tmp_path, content)) == read_workflow(write(tmp_path, document()))


def test_workflow_without_files_may_lack_their_section(tmp_path):
    content = document()
    del content["workflow"]["specification"]["files"]
    for task in specified(content):
        task["inputFiles"] = task["outputFiles"] = []
    job = read_workflow(write(tmp_path, content))
    assert [task.output_bytes for task in job.tasks] == [0, 0]


def drop(*path):
    def change(content):
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]

    return change


def put(value, *path):
    def change(content):
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = value

    return change


TASKS = ("workflow", "specification", "tasks")
RUNS = ("workflow", "execution", "tasks")
FILES = ("workflow", "specification", "files")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("1.4", "schemaVersion"), r"schemaVersion is '1\.4', but this reads '1\.5'"),
        (drop("schemaVersion"), "schemaVersion is None"),
        (drop("workflow"), "no 'workflow' section"),
        (drop("workflow", "execution"), "workflow has no 'execution' section"),
        (drop("workflow", "specification", "tasks"), "no list 'tasks'"),
        (put([], *TASKS), "nothing to run"),
        (put({}, *TASKS), "no list 'tasks'"),
        (drop(*FILES), r"'split_ID0000001' names the file 'raw', but .*files is missing"),
        (drop(*FILES, 2), r"names the file 'part', but .* has no such file"),
        (put("many", *FILES, 0, "sizeInBytes"), "file 'raw' has sizeInBytes='many'"),
        (put(-1, *FILES, 0, "sizeInBytes"), "file 'raw' has sizeInBytes=-1"),
        (put("raw", *FILES, 1, "id"), "file id 'raw' occurs twice"),
        (drop(*RUNS, 0, "runtimeInSeconds"), "'split_ID0000001' has no runtimeInSeconds"),
        (drop(*RUNS, 1), "'work_ID0000002' has no runtimeInSeconds"),
        (put(-2.0, *RUNS, 0, "runtimeInSeconds"), r"runtimeInSeconds=-2\.0"),
        (put("1 h", *RUNS, 0, "runtimeInSeconds"), "runtimeInSeconds='1 h'"),
        (put(float("nan"), *RUNS, 0, "runtimeInSeconds"), "runtimeInSeconds=nan"),
        (put("x", *RUNS, 0, "id"), "task 'x' was executed but is not specified"),
        (put("split_ID0000001", *TASKS, 1, "id"), "id 'split_ID0000001' occurs twice"),
        (put("split_ID0000001", *RUNS, 1, "id"), "id 'split_ID0000001' occurs twice"),
        (drop(*TASKS, 0, "id"), "task number 0 has the id None"),
        (put(["nobody"], *TASKS, 1, "parents"), "has the parent 'nobody', which is no task"),
        (put(["nobody"], *TASKS, 1, "children"), "has the child 'nobody', which is no task"),
        (put("raw", *TASKS, 0, "inputFiles"), "inputFiles='raw'; it is a list"),
        (put(["work_ID0000002"], *TASKS, 0, "parents"), "in a circle: split_ID0000001 ← work"),
        (put(["split_ID0000001"], *TASKS, 0, "parents"), "circle: split_ID0000001 ← split_ID00"),
    ],
)
def test_what_cannot_be_played_is_refused_with_file_place_and_remedy(tmp_path, change, message):
    content = copy.deepcopy(document())
    change(content)
    path = write(tmp_path, content)
    with pytest.raises(ConfigurationError, match=message) as refusal:
        read_workflow(path)
    assert str(path) in str(refusal.value)


def test_files_that_are_no_workflows_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot read the workflow"):
        read_workflow(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("tasks: 1")
    with pytest.raises(ConfigurationError, match="is not JSON"):
        read_workflow(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigurationError, match="list, not an object"):
        read_workflow(tmp_path / "list.json")
    (tmp_path / "plain.json.zst").write_text("{}")
    with pytest.raises(ConfigurationError, match="not zstd-compressed"):
        read_workflow(tmp_path / "plain.json.zst")


def test_truncated_file_is_refused(tmp_path):
    whole = zstandard.compress(json.dumps(document()).encode())
    path = tmp_path / "cut.json.zst"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError):
        read_workflow(path)


def test_many_are_read_from_files_and_folders_in_order(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.json", "a.json"):
        write(folder, document(), name)
    (folder / "notes.txt").write_text("not a workflow")
    single = write(tmp_path, document(), "z.json")
    assert [job.run for job in read_many([single, folder])] == ["z", "a", "b"]


def test_two_jobs_of_one_name_are_refused(tmp_path):
    path = write(tmp_path, document())
    with pytest.raises(ConfigurationError, match="would both be the job"):
        read_many([path, path])


def test_folder_without_workflows_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no \.json"):
        read_many([tmp_path])


def test_a_job_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "large.json"
    job = layered("large", n_tasks=30, n_layers=4, seed=1)
    tasks = [replace(task, memory_bytes=n, input_bytes=2 * n) for n, task in enumerate(job.tasks)]
    job = replace(job, tasks=tuple(tasks))
    read = {key for task in job.tasks for key in task.depends_on}
    write_workflow(job, path)
    # What nobody reads is no output there.
    wanted = [t if t.key in read else replace(t, output_bytes=0) for t in job.tasks]
    assert read_workflow(path, flow=job.flow) == replace(job, tasks=tuple(wanted))


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'infer-0' has a kind, needs, soft_gpu"):
        write_workflow(pipelines("r", n_items=1), tmp_path / "r.json")
    with pytest.raises(ConfigurationError, match="cannot write the workflow"):
        write_workflow(survey("r"), tmp_path / "missing" / "r.json")


def test_workflows_that_ship_are_those_that_their_seeds_make(tmp_path):
    """Made with: write_workflow(survey(name, rows=…, columns=…, seed=number), name + ".json")."""
    grids = ((4, 5), (4, 4), (5, 5))
    for seed, (name, (rows, columns)) in enumerate(zip(BUILTIN_WORKFLOWS, grids, strict=True), 1):
        (job,) = read_many([name])
        assert job == survey(name, rows=rows, columns=columns, seed=seed)
        assert job.flow == "survey"


def test_a_file_goes_before_a_workflow_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUILTIN_WORKFLOWS[0]).write_text(json.dumps(document()))
    (job,) = read_many([BUILTIN_WORKFLOWS[0]])
    assert len(job.tasks) == 2


def test_a_misspelt_workflow_is_told_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'survey-example-2'"):
        read_many(["survey-exmple-2"])


@needs_workflows
def test_all_real_workflows_are_read_with_clean_categories():
    jobs = read_many([WORKFLOWS / "train", WORKFLOWS / "validate"])
    assert len(jobs) == 103
    categories = {}
    for job in jobs:
        categories.setdefault(job.flow, set()).update(task.task for task in job.tasks)
        keys = {task.key for task in job.tasks}
        assert all(set(task.depends_on) <= keys for task in job.tasks)
        assert all(task.run_s >= 0 for task in job.tasks)
    assert set(categories) == {"1000genome", "blast", "bwa", "cycles", "montage", "srasearch"}
    assert categories["bwa"] == {"bwa", "bwa_index", "cat", "cat_bwa", "fastq_reduce"}
    assert categories["srasearch"] == {"bowtie2", "bowtie2-build", "fasterq-dump", "merge"}
    assert sum(len(found) for found in categories.values()) == 33
