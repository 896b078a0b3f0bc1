#include "coordinator/cluster/worker_process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace expertmesh {
namespace {

TEST(WorkerProcess, KnowsItsProcessAndEndsIt) {
  EXPECT_TRUE(WorkerProcess(getpid()).running());
  EXPECT_FALSE(WorkerProcess(std::int64_t{1} << 40).running());

  pid_t const child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (;;) pause();
  }
  WorkerProcess const process(child);
  EXPECT_TRUE(process.running());
  process.kill();
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_FALSE(process.running());
  process.kill();  // nothing left: no effect
}

}  // namespace
}  // namespace expertmesh
