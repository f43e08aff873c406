#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests validator.py: validator_test.py ATTEST. Exit code 77, a skip, where this machine cannot grade."""
import os
import pathlib
import re
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
SKIPPED = 77


def validate(*arguments):
    ran = subprocess.run([sys.executable, str(HERE / "validator.py"), *map(str, arguments)], stdin=subprocess.DEVNULL,
                         capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr


class Validator(unittest.TestCase):
    def test_right(self):
        code, out, err = validate("--file", HERE / "solution.py", "--verbose")
        self.assertEqual((code, err), (0, ""), out)
        self.assertIn(f"✓ Successfully loaded module from {HERE / 'solution.py'}\n", out)
        self.assertIn(f"✓ Loaded 1 test case(s) from {HERE / 'test_cases.json'}\n", out)
        self.assertIn("Running 1 test case(s)...\n", out)
        self.assertIn("✓ Test #1 'Basic attention without cache' - Passed\n", out)
        self.assertIn("Results: {'output_shape': [1, 4, 16], 'cache_key_shape': [1, 4, 16], "
                      "'cache_value_shape': [1, 4, 16]}\n", out)
        self.assertIn("Results: 1/1 tests passed\nInterface: 5/5 checks passed\n", out)

    def test_broken(self):
        code, out, _ = validate("--file", HERE / "kv_attention.py")
        self.assertEqual(code, 1)
        self.assertRegex(out, "✗ Test #1 'Basic attention without cache' - Failed: .")
        self.assertIn("Results: 0/1 tests passed\n", out)
        self.assertRegex(out, "✗ Interface: .* - Failed: .")

    def test_hidden_cases_show_their_category_only(self):
        hidden = ("--test-file", HERE / "test_cases_hidden.json", "--verbose")
        for file in ("fault_topleft_mask.py", "told_by_error.py", "told_by_print.py", "fault_split_cache.py"):
            with self.subTest(file):
                _, out, err = validate("--file", HERE / "corpus" / file, *hidden)
                lines = [line for line in out.split("\n") if "Test #" in line]
                self.assertEqual(len(lines), 10)
                for line in lines:
                    self.assertRegex(line, r"^[✓✗] Test #\d+ '[^']+' - (Passed|Failed)$")
                for leak in ("LEAKED", "output_shape", "incremental generation (5 steps)"):
                    self.assertNotIn(leak, out + err)

    def test_not_loaded(self):
        code, out, _ = validate("--file", HERE / "corpus" / "fault_class_missing.py")
        self.assertEqual(code, 1)
        self.assertRegex(out, "✗ Failed to load module from .*: .*KVCachedMultiHeadAttention")

    def test_nothing_to_try(self):
        for arguments, said in ((("--file", "/nowhere/kv_attention.py"), "no such file"),
                                (("--file", HERE / "solution.py", "--test-file", "/nowhere/t.json"), "No such file"),
                                (("--file", HERE / "solution.py", "--test-file", HERE / "places.json"), "test_case"),
                                (("--file", HERE / "README.md"), r"\.py")):
            with self.subTest(said):
                code, out, err = validate(*arguments)
                self.assertTrue(code == 2 or "Failed to load" in out, out + err)
                self.assertTrue(re.search(said, out + err), out + err)

    def test_without_attest(self):
        ran = subprocess.run([sys.executable, str(HERE / "validator.py"), "--file", str(HERE / "solution.py")],
                             capture_output=True, text=True, env={**os.environ, "ATTEST": "/nowhere/attest"})
        self.assertEqual(ran.returncode, 2)
        self.assertIn("/nowhere/attest", ran.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.environ["ATTEST"] = os.path.abspath(sys.argv.pop())
    code, _, problem = validate("--file", HERE / "solution.py")
    if code == 2 and ("sandbox" in problem or "PyTorch" in problem):
        print(f"skipped: {problem}")
        sys.exit(SKIPPED)
    unittest.main()
