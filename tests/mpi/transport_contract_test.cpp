// What every transport promises, run against each of them with 1, 2, 3 and 5 peers.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/mpi/transport_under_test.h"

namespace expertmesh {
namespace {

constexpr std::array<std::size_t, 9> kSizes = {0, 1, 63, 64, 65, 8191, 65537, 1 << 20, 3 << 20};

class TransportContract : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  TransportContract() {
    auto const& [name, num_peers] = GetParam();
    if (name == "mpi") {
      under_test_ = std::make_unique<MpiUnderTest>();
    } else if (name == "shm") {
      under_test_ = std::make_unique<ShmUnderTest>();
    } else {
      under_test_ = std::make_unique<InProcessUnderTest>();
    }
    EXPECT_EQ(transport().name(), name);
    for (int i = 0; i < num_peers; ++i) peers_.push_back(under_test_->add_peer());
  }
  Transport& transport() { return under_test_->transport(); }

  std::unique_ptr<TransportUnderTest> under_test_;
  std::vector<PeerId> peers_;
};

TEST_P(TransportContract, CarriesEverySizeWhicheverIsPostedFirst) {
  for (std::size_t const bytes : kSizes) {
    for (PeerId const peer : peers_) {
      under_test_->expect_answered(under_test_->start(peer, bytes));
      under_test_->expect_answered(under_test_->start_sending_first(peer, bytes));
    }
  }
}

TEST_P(TransportContract, KeepsManyInFlightToEveryPeer) {
  std::vector<Exchange const*> exchanges;
  for (std::size_t const bytes : {65537, 1, 8191, 0, 64, 300000, 63, 8192}) {
    for (PeerId const peer : peers_) {
      exchanges.push_back(&under_test_->start(peer, bytes));
      exchanges.push_back(&under_test_->start_sending_first(peer, bytes + 1));
    }
  }
  for (Exchange const* exchange : exchanges) under_test_->expect_answered(*exchange);
}

TEST_P(TransportContract, ReportsNoMoreThanAskedForAndNothingTwice) {
  std::vector<Exchange const*> exchanges;
  for (PeerId const peer : peers_) {
    for (int i = 0; i < 4; ++i) exchanges.push_back(&under_test_->start(peer, 100));
  }
  EXPECT_EQ(transport().poll({}), 0);
  for (Exchange const* exchange : exchanges) under_test_->expect_answered(*exchange);
  std::array<Completion, 4> rest;
  EXPECT_EQ(transport().poll(rest), 0);
}

TEST_P(TransportContract, FenceCancelsThePeersOpsAndNoOthers) {
  std::array<std::byte, 1000> never{};
  OpId const cut = transport().post_recv(peers_[0], MessageTag(7), never);
  std::vector<Exchange const*> others;
  for (std::size_t i = 1; i < peers_.size(); ++i) others.push_back(&under_test_->start(peers_[i], 70000));

  transport().fence(peers_[0]);
  EXPECT_EQ(under_test_->wait(cut).status, OpStatus::cancelled);
  EXPECT_EQ(under_test_->wait(cut).peer, peers_[0]);
  EXPECT_EQ(transport().quarantined_bytes(), 0);
  for (Exchange const* exchange : others) under_test_->expect_answered(*exchange);
  for (std::size_t i = 1; i < peers_.size(); ++i) {
    under_test_->expect_answered(under_test_->start(peers_[i], 8191));
  }
}

std::string case_name(testing::TestParamInfo<TransportContract::ParamType> const& instance) {
  std::string const& name = std::get<0>(instance.param);
  return (name == "mpi" ? "Mpi" : name == "shm" ? "Shm" : "InProcess") + std::to_string(std::get<1>(instance.param));
}
INSTANTIATE_TEST_SUITE_P(Every, TransportContract,
                         testing::Combine(testing::Values("in-process", "mpi", "shm"), testing::Values(1, 2, 3, 5)),
                         case_name);

}  // namespace
}  // namespace expertmesh
