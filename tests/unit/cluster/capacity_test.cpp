// Placements among workers that can hold more than others, without any cluster: Membership and CapacityBook alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <numeric>

#include "coordinator/cluster/capacity_book.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/static_split.h"

namespace expertmesh {
namespace {

// A coordinator whose workers do at once what they are told.
class Rig {
 public:
  Rig(std::vector<std::size_t> num_experts, std::size_t num_local, std::size_t num_remote)
      : membership_({.num_experts = std::move(num_experts), .num_local = num_local, .num_remote = num_remote}) {
    membership_.start_all();
    membership_.supervise(now_);
  }

  Membership& membership() { return membership_; }
  Life life(std::uint32_t worker) { return membership_.place(WorkerId(worker)).life(); }

  void know(std::uint32_t worker, double rate, std::size_t room = SIZE_MAX) {
    membership_.set_capacity(life(worker), {.rate = rate, .room = room});
  }
  // Loads what it is given and serves it. -> experts of the first layer that it loaded
  std::size_t serve(std::uint32_t worker) {
    Share const share = membership_.to_load(life(worker));
    membership_.serves(life(worker));
    settle();
    return share.held->front().size();
  }
  std::size_t join(double rate, std::size_t room = SIZE_MAX) {
    auto const life = membership_.join();
    know(life->worker.value(), rate, room);
    return serve(life->worker.value());
  }
  void settle() {
    for (bool more = true; std::exchange(more, false);)
      for (auto const& action : membership_.tick(now_)) {
        more = true;
        if (auto const* hold = std::get_if<Membership::Hold>(&action)) membership_.moved(hold->life, hold->share.epoch);
      }
  }
  // [places] experts of a layer, by the present placement
  std::vector<std::size_t> sizes(std::size_t layer = 0) {
    std::vector<std::size_t> out;
    for (std::uint32_t w = 1; w <= membership_.num_places(); ++w)
      out.push_back((*membership_.place(WorkerId(w)).held)[layer].size());
    return out;
  }

 private:
  Membership membership_;
  Membership::Time const now_{};
};

using Sizes = std::vector<std::size_t>;

TEST(Capacity, TheFirstPlacementGoesByIt) {
  Rig rig({8, 4}, 2, 0);
  rig.know(1, 30);
  rig.know(2, 10);
  EXPECT_EQ(rig.serve(1), 6U);
  EXPECT_EQ(rig.serve(2), 2U);
  EXPECT_EQ(rig.sizes(0), (Sizes{6, 2}));
  EXPECT_EQ(rig.sizes(1), (Sizes{3, 1}));
  EXPECT_EQ(rig.membership().balance().num_moves, 0U) << "nobody loaded anything twice";
}

TEST(Capacity, MachinesThatAreAboutAlikeGetTheEvenSplit) {
  for (double const other : {1.0, 1.1, 1.25}) {
    Rig rig({64, 33}, 3, 0);
    rig.know(1, 10);
    rig.know(2, 10 * other);
    rig.know(3, 10);
    auto const even = static_split({64, 33}, 3);
    for (std::uint32_t w = 1; w <= 3; ++w) EXPECT_EQ(*rig.membership().to_load(rig.life(w)).held, even[w - 1]) << other;
  }
  Rig rig({64, 33}, 2, 0);
  rig.know(1, 10);
  rig.know(2, 14);
  EXPECT_NE(*rig.membership().to_load(rig.life(1)).held, static_split({64, 33}, 2).front()) << "1.4 is not alike";
}

TEST(Capacity, WhoIsAwaitedLoadsItsPartAtOnceAndOthersGiveThemUpToIt) {
  Rig rig({8}, 1, 1);
  rig.know(1, 10);
  EXPECT_EQ(rig.serve(1), 4U) << "nothing is known of the other";
  EXPECT_EQ(rig.join(30), 6U);
  EXPECT_EQ(rig.sizes(), (Sizes{2, 6}));
}

TEST(Capacity, WhileItLoadsTheOthersKeepWhatTheyServe) {
  Rig rig({8}, 1, 1);
  rig.know(1, 10);
  rig.serve(1);
  auto const life = rig.membership().join();
  rig.know(2, 30);
  Share const share = rig.membership().to_load(*life);
  rig.settle();
  EXPECT_EQ(share.held->front().size(), 6U);
  ASSERT_EQ(rig.membership().members().size(), 1U);
  EXPECT_EQ(rig.membership().members().front().share.held->front().size(), 4U);
  rig.membership().serves(*life);
  rig.settle();
  EXPECT_EQ(rig.membership().members().front().share.held->front().size(), 2U);
}

TEST(Capacity, AStrangerGetsItsPart) {
  Rig rig({8}, 1, 0);
  rig.know(1, 10);
  rig.serve(1);
  rig.join(30);
  EXPECT_EQ(rig.sizes(), (Sizes{2, 6}));
}

TEST(Capacity, MemoryIsALimit) {
  Rig rig({8}, 2, 0);
  rig.know(1, 10);
  rig.know(2, 1000, 3);
  EXPECT_EQ(rig.serve(1), 5U);
  EXPECT_EQ(rig.serve(2), 3U);
  rig.join(1000, 1);
  EXPECT_EQ(rig.sizes()[2], 1U);
}

TEST(Capacity, AlsoOfThoseThatAreAlike) {
  Rig rig({8}, 2, 0);
  rig.know(1, 10, 7);
  rig.know(2, 10, 1);
  EXPECT_EQ(rig.serve(1), 7U);
  EXPECT_EQ(rig.serve(2), 1U);
}

TEST(Capacity, WhatIsSlowForItsCapacityIsNotSlowTwice) {
  Rig rig({16}, 2, 0);
  rig.know(1, 12);
  rig.know(2, 4);
  rig.serve(1);
  rig.serve(2);
  rig.membership().set_speed(rig.life(2), 0.25);
  rig.settle();
  EXPECT_GE(rig.sizes()[1], 3U);
  rig.membership().set_speed(rig.life(2), 1.0 / 16);
  rig.settle();
  EXPECT_LE(rig.sizes()[1], 1U) << "it is slower than its capacity says";
}

control::Capacity said(std::string const& device, std::uint32_t threads, std::uint64_t rate, bool measured) {
  return {.device = device, .threads = threads, .bytes_per_second = rate, .measured = measured, .memory_bytes = 100};
}

TEST(CapacityBook, WorkersOfOneHostThatAreAlikeHaveTheFirstOnesMeasure) {
  CapacityBook book({.on_processor = 30, .on_device = 60});
  EXPECT_EQ(book.enter("a", said("cpu", 2, 10, true)), (WorkerCapacity{.rate = 10, .room = 3}));
  EXPECT_EQ(book.enter("a", said("cpu", 2, 5, true)).rate, 10);
  EXPECT_EQ(book.enter("a", said("cpu", 1, 5, true)).rate, 5);
  EXPECT_EQ(book.enter("b", said("cpu", 2, 6, true)).rate, 6);
  EXPECT_EQ(book.enter("a", said("cpu", 2, 7, false)).rate, 7) << "what somebody says counts";
  EXPECT_EQ(book.enter("a", said("cuda:0 NVIDIA H200", 1, 4000, true)), (WorkerCapacity{.rate = 4000, .room = 1}));
  EXPECT_EQ(book.enter("a", said("cuda:1 NVIDIA H200", 1, 3000, true)).rate, 4000);
  EXPECT_EQ(book.enter("a", said("cuda:2 NVIDIA L4", 1, 300, true)).rate, 300);
}

}  // namespace
}  // namespace expertmesh
