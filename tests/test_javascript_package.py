"""The npm package: it packs what it needs, its types are right, its snippets serve, and it explains as Python does."""

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from test_node_example import EXAMPLES, PASSAGES, install, serving

from router import Decision, Router

PACKAGE = EXAMPLES / "javascript"
NAME = "token-broker-router"
TYPES = (PACKAGE / "index.d.ts").read_text(encoding="utf-8")
CONSUMER = """
import * as ort from "onnxruntime-node";
import { Tokenizer } from "@huggingface/tokenizers";
import { parse as parseToml } from "smol-toml";
import { openRouter, DialError, type Branch, type Decision, type Plan } from "token-broker-router";
import { Router } from "token-broker-router/node";

const router: Router = await Router.load("models/demo", { ort, Tokenizer, parseToml });
const decision: Decision = await router.route({ messages: [{ role: "user", content: "Hi" }], quality: 0.9 });
const usd: number | undefined = decision.offer?.usd_per_mtok_input;
const worths: (number | null)[] = router.explain(decision).changes.map((change) => change.worth_usd);
const plan: Plan = await router.plan({ prompt: "Hi", worth_usd: 0.01, checks: ["agreement"] });
const next = (branch: Branch): string => branch.step === null ? branch.returned : branch.step.tier;
router.prices = router.bundlePrices.scaled({ edge: 2 });
const other = await openRouter(async () => new Uint8Array(), { ort, Tokenizer, parseToml }, { files: null });
// @ts-expect-error: no such key
await router.route({ promt: "Hi" });
// @ts-expect-error: a plan needs a worth
await router.plan({ prompt: "Hi" });
// @ts-expect-error: routers are loaded, not made
new Router({});
console.log(usd, worths, plan.steps.branches.map(next), other.bundleId, new DialError("x").message);
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory, bundle) -> Path:
    """A project that has installed the packed package, with the libraries that it is given, and a bundle."""
    install(EXAMPLES / "node")
    install(PACKAGE)
    folder = tmp_path_factory.mktemp("project")
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder)]
    subprocess.run(command, cwd=PACKAGE, check=True, capture_output=True)
    modules = folder / "node_modules"
    modules.mkdir()
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(modules, filter="data")
    (modules / "package").rename(modules / NAME)
    for source in (EXAMPLES / "node", PACKAGE):
        for module in (source / "node_modules").iterdir():
            if not module.name.startswith(".") and not (modules / module.name).exists():
                (modules / module.name).symlink_to(module)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "models").mkdir()
    (folder / "models" / "demo").symlink_to(bundle)
    return folder


@contextmanager
def running(project: Path, code: str) -> Iterator[str]:
    """The address of a service that prints its port."""
    (project / "service.js").write_text(code)
    environment = {**os.environ, "PORT": "0"}
    with subprocess.Popen(
        ["node", "service.js"], cwd=project, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def post(url: str, body: dict) -> tuple[int, dict]:
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def keys_of(interface: str) -> list[str]:
    """The keys of an interface in index.d.ts, in their order."""
    (body,) = re.findall(rf"^export interface {interface} .*?{{\n(.*?)^}}", TYPES, re.DOTALL | re.MULTILINE)
    return re.findall(r"^  (\w+)\??:", body, re.MULTILINE)


# ---- what is packed, and its types -----------------------------------------------------------------


def test_the_package_has_what_it_needs_and_nothing_else(project):
    sources = {path.name for pattern in ("*.js", "*.ts") for path in PACKAGE.glob(pattern)}
    packed = {path.name for path in (project / "node_modules" / NAME).iterdir()}
    assert packed == sources | {"package.json", "README.md", "LICENSE"}
    assert (PACKAGE / "LICENSE").read_bytes() == (EXAMPLES.parent / "LICENSE").read_bytes()


def test_a_typescript_project_compiles_what_is_right_and_refuses_what_is_wrong(project):
    (project / "consumer.ts").write_text(CONSUMER)
    options = ["--strict", "--target", "es2024", "--module", "nodenext", "--types", "node"]
    compiler = ["node", str(project / "node_modules" / "typescript" / "bin" / "tsc"), "--noEmit", *options]
    types = [str(project / "node_modules" / NAME / name) for name in ("index.d.ts", "node.d.ts")]
    for files in (types, ["--skipLibCheck", "consumer.ts"]):  # the tokenizer's own types have faults
        done = subprocess.run([*compiler, *files], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_types_name_all_that_is_exported(project):
    code = f'console.log(JSON.stringify(Object.keys(await import("{NAME}"))))'
    command = ["node", "--input-type=module", "--eval", code]
    exported = json.loads(subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout)
    named = re.findall(r"^export (?:class|function|const) (\w+)", TYPES, re.MULTILINE)
    assert sorted(named) == sorted(exported)


def test_the_types_have_the_keys_of_python(bundle):
    decision = Router.load(bundle).route("Hi")
    plan = json.loads(Router.load(bundle).plan("Hi", worth_usd=0.01).to_json())
    assert keys_of("Decision") == [field.name for field in fields(Decision)]
    assert keys_of("Plan") == list(plan)
    assert keys_of("Step") == list(plan["steps"])
    similar = decision.explain().to_json()["similar"]
    assert keys_of("Cluster") == list(similar)
    assert set(keys_of("Explanation")) <= set(decision.explain().to_json())


# ---- what it does ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1], ids=["express", "fastify"])
def test_the_snippets_serve(project, bundle, number):
    snippets = re.findall(r"^```js\n(.*?)^```", (PACKAGE / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    request = {"messages": [{"role": "user", "content": PASSAGES[0]}], "quality": 0.9}
    expected = Router.load(bundle).route(**request)
    with running(project, snippets[number]) as url:
        status, decision = post(f"{url}/route", request)
        assert (status, decision["tier"], decision["reason"]) == (200, expected.tier, expected.reason)
        status, refused = post(f"{url}/route", {**request, "quality": 7})
        assert status == 400 and "quality is 7; expected a share" in refused["error"]


def test_every_explanation_has_pythons_figures(project, bundle, tmp_path):
    python, seen = Router.load(bundle), set()
    dials = [{"quality": q, "worth_usd": w} for q, w in product((None, 0.8, 0.95, 1), (None, 0, 0.003, 0.05))]
    others = [{"critical": True}, {"regions": ["local"]}, {"regions": []}, {"regions": ["us", "cn"], "quality": 1}]
    with serving(bundle, tmp_path / "log") as service:
        for prompt, more in product([*PASSAGES[:4], "", PASSAGES[4] * 500], [*dials, *others]):
            request = {"prompt": prompt, **more}
            status, found = service.ask("POST", "/explain", json.dumps(request).encode())
            expected = json.loads(json.dumps(python.route(**request).explain().to_json()))
            explanation = found["explanation"]
            assert status == 200 and list(explanation) == keys_of("Explanation")
            for name in ("tier", "admissible", "similar"):
                assert explanation[name] == expected[name], request
            for change, other in zip(explanation["changes"], expected["changes"], strict=True):
                assert list(change) == keys_of("Change")
                for name, value in change.items():
                    same = value == other[name] or value == pytest.approx(other[name], rel=1e-3, abs=1e-6)
                    assert same, (request, change, other)
                    seen |= {name} if value is not None else set()
    assert seen == {"tier", "price_factor", "worth_usd", "slack"}


def test_without_clusters_nothing_similar_is_known(project):
    code = f"""
        import {{ explain }} from "{NAME}";
        const decision = {{ tier: "a", reason: "r", eligible: [], cluster: 3 }};
        console.log(JSON.stringify(explain(decision)));
    """
    command = ["node", "--input-type=module", "--eval", code]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"tier": "a", "reason": "r", "admissible": [], "changes": [], "similar": None}
