#include "common/base/task.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace expertmesh {
namespace {

// Suspends whoever awaits it until the test resumes it.
struct Gate {
  std::coroutine_handle<> waiting;
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) noexcept { waiting = handle; }
  void await_resume() noexcept {}
};

Task inner(FrameArena&, Gate& gate, std::string& trace) {
  trace += "inner ";
  co_await gate;
  trace += "resumed ";
}

Task outer(FrameArena& arena, Gate& gate, std::string& trace) {
  trace += "outer ";
  co_await inner(arena, gate, trace);
  trace += "after ";
  co_await inner(arena, gate, trace);
}

Task failing(FrameArena&, Gate& gate) {
  co_await gate;
  throw std::runtime_error("failed inside");
}

Task passing_on(FrameArena& arena, Gate& gate) {
  co_await failing(arena, gate);
}

struct Member {
  std::string trace;
  Task run(FrameArena&) {
    trace = "ran";
    co_return;
  }
};

TEST(Task, SuspendsAndResumesThroughNestedCalls) {
  FrameArena arena(1 << 14);
  Gate gate;
  std::string trace;
  Task task = outer(arena, gate, trace);
  EXPECT_EQ(trace, "");
  task.start();
  EXPECT_EQ(trace, "outer inner ");
  EXPECT_FALSE(task.done());
  gate.waiting.resume();
  EXPECT_EQ(trace, "outer inner resumed after inner ");
  gate.waiting.resume();
  EXPECT_TRUE(task.done());
  task.rethrow();
}

TEST(Task, AnExceptionReachesTheOutermostTask) {
  FrameArena arena(1 << 14);
  Gate gate;
  Task task = passing_on(arena, gate);
  task.start();
  gate.waiting.resume();
  ASSERT_TRUE(task.done());
  EXPECT_THROW(task.rethrow(), std::runtime_error);
}

TEST(Task, FramesAreGivenBackSoThatStepsMayFollowForEver) {
  FrameArena arena(1 << 11);
  for (int step = 0; step < 1000; ++step) {
    Member member;
    Task task = member.run(arena);
    task.start();
    ASSERT_TRUE(task.done());
    ASSERT_EQ(member.trace, "ran");
  }
}

TEST(Task, AnAbandonedTaskGivesItsFramesBackToo) {
  FrameArena arena(1 << 13);
  Gate gate;
  std::string trace;
  for (int step = 0; step < 100; ++step) {
    Task task = outer(arena, gate, trace);
    task.start();
  }
}

TEST(FrameArena, TooLargeAFrameIsABrokenInvariant) {
  FrameArena arena(128);
  void* frame = arena.allocate(100);
  EXPECT_DEATH(arena.allocate(1), "coroutine frames need");
  arena.release(frame, 100);
}

TEST(FrameArena, FramesThatDieOutOfOrderAreABrokenInvariant) {
  FrameArena arena(512);
  void* first = arena.allocate(64);
  arena.allocate(64);
  EXPECT_DEATH(arena.release(first, 64), "reverse order");
}

}  // namespace
}  // namespace expertmesh
