#!/usr/bin/env python3
"""check_sources.py [ROOT]: holds the rules of the source tree that no compiler holds. First every rule has to find the
fault planted for it in a copy of the tree: a rule that cannot fail is no rule."""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CODE_FOLDERS = ("common", "coordinator", "worker")
CODE_SUFFIXES = {".h", ".cpp", ".cu"}
MAX_LINES = 700
# Folders of common/ from the bottom up; one includes only what lies below its line, and itself.
COMMON_LAYERS = (("base",), ("tensor",), ("config",), ("kernels", "checkpoint", "moe"), ("protocol",), ("experts", "transport"))
FAMILY_NAMES = re.compile(r"mixtral|qwen|llama|noisy_topk_moe|deepseek|olmoe|granite|gpt_oss|phimoe|jamba|ernie|hunyuan|nllb|switch_transformers", re.IGNORECASE)
FAMILY_FOLDERS = (("coordinator", "model", "families"), ("coordinator", "text", "answers"))  # layers; how a family writes calls
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def files_under(root, folders, suffixes):
    return sorted(path for folder in folders for path in (root / folder).rglob("*")
                  if path.suffix in suffixes and "demo-model" not in path.parts)


def code_files(root, folders=CODE_FOLDERS):
    return files_under(root, folders, CODE_SUFFIXES)


def includes(root):
    """-> (file, its path's parts, included path) of every include"""
    for path in code_files(root):
        for included in INCLUDE.findall(path.read_text()):
            yield path.relative_to(root), included


def layering(root):
    level = {folder: i for i, layer in enumerate(COMMON_LAYERS) for folder in layer}
    for path, included in includes(root):
        top, target = path.parts[0], included.split("/")
        if target[0] not in CODE_FOLDERS:
            continue
        if target[0] not in (top, "common"):
            yield f"{path}: {top} must not include {included}"
        elif top == "common" and path.parts[1] != target[1]:
            unknown = [folder for folder in (path.parts[1], target[1]) if folder not in level]
            if unknown:
                yield f"{path}: {unknown[0]} has no place in COMMON_LAYERS"
            elif level[path.parts[1]] <= level[target[1]]:
                yield f"{path}: common/{path.parts[1]} does not lie above {included}"


def family_names(root):
    for path in code_files(root):
        name = path.relative_to(root)
        if name.parts[:3] in FAMILY_FOLDERS:
            continue
        found = FAMILY_NAMES.search(COMMENT.sub("", path.read_text()))
        if found:
            yield f"{name}: names the family '{found.group()}', which belongs into {' or '.join(map('/'.join, FAMILY_FOLDERS))}"


def library_places(root):
    places = (("mpi.h", ("common/transport",)), ("boost/beast", ("coordinator/http", "coordinator/bench")))
    for path, included in includes(root):
        for header, folders in places:
            if included.startswith(header) and "/".join(path.parts[:2]) not in folders:
                yield f"{path}: {header} is for {' and '.join(folders)} only"


def length(root):
    for path in files_under(root, (*CODE_FOLDERS, "tests", "launch"), CODE_SUFFIXES | {".py", ".sh"}):
        lines = path.read_text().count("\n")
        if lines > MAX_LINES:
            yield f"{path.relative_to(root)}: {lines} lines, at most {MAX_LINES}"


def unfinished(root):
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
    for path in files_under(root, (*CODE_FOLDERS, "tests", "launch"), CODE_SUFFIXES | {".py", ".sh", ".txt"}):
        found = marks.search(path.read_text())
        if found:
            yield f"{path.relative_to(root)}: {found.group()}"


def formatting(root):
    files = code_files(root, (*CODE_FOLDERS, "tests"))
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", f"--style=file:{root / '.clang-format'}", *map(str, files)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        names = sorted({line.split(":")[0] for line in done.stderr.splitlines() if "error:" in line})
        for name in names or [done.stderr]:
            yield f"{name.removeprefix(f'{root}/')}: not as clang-format wants it"


def append(name, text):
    def plant(root):
        with (root / name).open("a") as file:
            file.write(text)

    return plant


# rule -> faults it has to find, each planted alone
RULES = {
    layering: [append("common/base/check.h", '#include "worker/worker_loop.h"\n'),
               append("coordinator/options.h", '#include "worker/worker_loop.h"\n'),
               append("worker/worker_loop.h", '#include "coordinator/options.h"\n'),
               append("common/base/check.h", '#include "common/tensor/dtype.h"\n'),
               append("common/moe/router.h", '#include "common/kernels/exec.h"\n'),
               append("common/moe/router.h", '#include "common/protocol/framing.h"\n'),
               append("common/kernels/cuda/rows.cu", '#include "common/protocol/framing.h"\n')],
    family_names: [append("coordinator/options.h", 'char const* name = "mixtral";\n'),
                   append("common/kernels/cuda/rows.cu", 'char const* name = "mixtral";\n')],
    library_places: [append("worker/worker_loop.cpp", "#include <mpi.h>\n"),
                     append("coordinator/options.cpp", "#include <boost/beast/core.hpp>\n")],
    length: [append("worker/main.cpp", "\n" * (MAX_LINES + 1)),
             append("common/kernels/cuda/rows.cu", "\n" * (MAX_LINES + 1))],
    unfinished: [append("worker/main.cpp", "// TO" "DO: the rest\n"),
                 append("common/kernels/cuda/rows.cu", "// TO" "DO: the rest\n")],
    formatting: [append("worker/main.cpp", "int   x  ;\n"),
                 append("common/kernels/cuda/rows.cu", "int   x  ;\n")],
}


def has_clang_format_14():
    try:
        return "version 14." in subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return False


def copy_tree(root, scratch):
    for folder in (*CODE_FOLDERS, "tests", "launch"):
        shutil.copytree(root / folder, scratch / folder, ignore=shutil.ignore_patterns("goldens", "demo-model", "__pycache__"))
    shutil.copyfile(root / ".clang-format", scratch / ".clang-format")


def blind_rules(root, rules):
    """-> what each rule fails to find among the faults planted for it"""
    for rule in rules:
        known = set(rule(root))
        for i, plant in enumerate(RULES[rule]):
            with tempfile.TemporaryDirectory() as scratch:
                copy_tree(root, Path(scratch))
                plant(Path(scratch))
                if len(set(rule(Path(scratch)))) <= len(known):
                    yield f"rule {rule.__name__} does not find its planted fault {i}"


def main(root):
    rules = list(RULES)
    if not has_clang_format_14():
        print("skipped: formatting (clang-format 14 is not here; other versions format differently)")
        rules.remove(formatting)
    problems = [problem for rule in rules for problem in rule(root)] + list(blind_rules(root, rules))
    for problem in problems:
        print(problem)
    print(f"{len(rules)} rules, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()))
