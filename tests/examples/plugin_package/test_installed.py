"""The example's package as pip installs it: plug-ins are found by name and keep their contracts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "examples" / "plugin_package"
CHECK = "from runtime.cli.main import app; app(['contracts', 'recsys-example-plugins'])"
USE = """
from recsys.config.policy_config import PolicyConfig, check_plugins
from recsys.app.app_file import app_of
app = app_of('''
sources: {popular: 10, same_author@1: 20}
features: {functions: {near: {call: likeness@1, of: [events, hour.sin]}}}
''')
check_plugins(PolicyConfig(sources=app.sources), ["short_first@1"])
print(app.feature_set().dense_names[-1])
"""


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_the_installed_package_is_found_and_checked(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--target", str(site))
    installed = run(site, "-m", "pip", "install", "-q", *options, str(source))
    assert installed.returncode == 0, installed.stderr
    used = run(site, "-c", USE)
    assert used.stdout.strip() == "near", used.stderr
    checked = run(site, "-c", CHECK)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert len(checked.stdout.splitlines()) > 15 and "BROKEN" not in checked.stdout

    module = site / "recsys_example_plugins.py"
    code = module.read_text()
    module.write_text(
        code.replace("np.concatenate(parts)[:k]", "np.random.permutation(np.concatenate(parts))[:k]")
    )
    checked = run(site, "-c", CHECK)
    assert checked.returncode == 1
    broken = [line for line in checked.stdout.splitlines() if "BROKEN" in line]
    assert {line.split()[1] for line in broken} == {"same_author,"}
    assert any("same output: BROKEN: ValueError: two calls with one" in line for line in broken)
    module.write_text("raise RuntimeError('no licence')")
    checked = run(site, "-c", CHECK)
    assert checked.returncode == 1 and checked.stdout.count("no licence): pip install") == 4
