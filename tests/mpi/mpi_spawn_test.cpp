// Spawns that come to nothing end in an error of one line, and later spawns work.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>

#include "common/base/error.h"
#include "tests/mpi/transport_under_test.h"

namespace expertmesh {
namespace {

using std::chrono::milliseconds;

std::string spawn_failure(std::filesystem::path const& program, milliseconds deadline) {
  try {
    spawn_worker(program, {}, deadline);
  } catch (MpiError const& error) {
    EXPECT_EQ(error.call, "MPI_Comm_spawn");
    EXPECT_EQ(error.peer, program.string());
    return error.what();
  }
  return "";
}

void expect_spawns_work() {
  MpiUnderTest under_test;
  under_test.expect_answered(under_test.start(under_test.add_peer(), 8191));
}

TEST(SpawnWorker, ProgramThatIsNotThere) {
  EXPECT_EQ(spawn_failure("/no/such/program", kDeadline),
            "MPI_Comm_spawn: cannot run the program: No such file or directory (2) [/no/such/program]");
  expect_spawns_work();
}

TEST(SpawnWorker, ThingThatIsNotAProgram) {
  EXPECT_NE(spawn_failure(executable_dir(), kDeadline), "");
  EXPECT_NE(spawn_failure("/etc/passwd", kDeadline), "");
}

TEST(SpawnWorker, ProcessThatDiesBeforeMpi) {
  std::string const failure = spawn_failure(executable_dir() / "mpi_early_exit", milliseconds(300));
  EXPECT_NE(failure.find("did not reach MPI within 300 ms"), std::string::npos) << failure;
  expect_spawns_work();
}

TEST(SpawnWorker, ParentOfAProcessThatNobodySpawned) {
  EXPECT_THROW(parent_comm(), MpiError);
}

}  // namespace
}  // namespace expertmesh
