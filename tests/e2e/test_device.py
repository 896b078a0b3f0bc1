"""What the program says where there is no GPU, or no CUDA in the build: one line that names the device, and an exit code;
never a silent fallback. And groups of workers with different kernels, where that is allowed."""
import subprocess
import unittest

from harness import DEMO_MODEL, EXPERTMESH, Server

# Whatever the reason is, it names the device.
NO_DEVICE = "[cuda:"


def serve(*options):
    """-> exit code, last line of standard error"""
    done = subprocess.run([EXPERTMESH, "serve", str(DEMO_MODEL), "--port", "0", *options], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)
    return done.returncode, done.stderr.strip().splitlines()[-1]


def there_is_a_gpu():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.startswith("GPU ")
    except FileNotFoundError:
        return False


@unittest.skipIf(there_is_a_gpu(), "this machine has a GPU: see tests/gpu/run.sh")
class NoDeviceTest(unittest.TestCase):
    def test_the_coordinator_refuses_with_the_reason(self):
        for device in ("cuda", "cuda:3"):
            code, line = serve("--device", device)
            self.assertEqual(code, 2, line)
            self.assertIn(NO_DEVICE, line)
            self.assertRegex(line, "no NVIDIA driver|no CUDA")

    def test_a_worker_says_why_it_ended(self):
        code, line = serve("--workers", "1", "--worker-device", "cuda", "--allow-mixed-numerics")
        self.assertEqual(code, 1, line)
        self.assertIn("worker 1: ", line)
        self.assertIn(NO_DEVICE, line)


class OptionsTest(unittest.TestCase):
    def test_names_of_devices(self):
        for device in ("tpu", "cuda:", "cuda:x", "cuda:1234", "CUDA", ""):
            code, line = serve("--device", device)
            self.assertEqual(code, 2, (device, line))

    def test_bits_that_would_depend_on_deaths_have_to_be_allowed(self):
        code, line = serve("--workers", "1", "--worker-device", "cuda")
        self.assertEqual(code, 2, line)
        self.assertIn("--allow-mixed-numerics", line)

    def test_what_would_have_no_effect_is_refused(self):
        code, line = serve("--worker-device", "cuda")
        self.assertEqual(code, 2, line)
        self.assertIn("no workers", line)
        for option in (("--gpu-memory-utilization", "0.5"), ("--enforce-eager",)):
            code, line = serve(*option)
            self.assertEqual(code, 2, line)

    def test_the_profile_says_what_runs(self):
        with Server(DEMO_MODEL, "--workers", "1", "--allow-mixed-numerics") as server:
            profile = server.get("/v1/cluster")[1]["profile"]
            self.assertFalse(profile["bitwise_identity"])
            self.assertEqual(profile["isa"], profile["expert_isa"])
            self.assertTrue(server.complete(prompt="Once", max_tokens=4, temperature=0)["choices"][0]["text"])
        with Server(DEMO_MODEL) as server:
            self.assertTrue(server.get("/v1/cluster")[1]["profile"]["bitwise_identity"])
            self.assertEqual(server.get("/v1/cluster")[1]["coordinator"]["device"], "cpu")


if __name__ == "__main__":
    unittest.main()
