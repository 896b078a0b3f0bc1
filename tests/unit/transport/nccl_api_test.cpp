#include "common/transport/nccl_api.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "common/transport/nccl_link.h"

#ifdef EM_HAS_NCCL_H
#include <nccl.h>
#endif

namespace expertmesh {
namespace {

#ifdef EM_HAS_NCCL_H
// What we declare of the ABI is a prefix of what this version of the library has.
#define EM_SAME_PLACE(ours, theirs) static_assert(offsetof(NcclConfig, ours) == offsetof(ncclConfig_t, theirs))
EM_SAME_PLACE(size, size);
EM_SAME_PLACE(magic, magic);
EM_SAME_PLACE(version, version);
EM_SAME_PLACE(blocking, blocking);
EM_SAME_PLACE(cga_cluster_size, cgaClusterSize);
EM_SAME_PLACE(min_ctas, minCTAs);
EM_SAME_PLACE(max_ctas, maxCTAs);
EM_SAME_PLACE(net_name, netName);
EM_SAME_PLACE(split_share, splitShare);
EM_SAME_PLACE(traffic_class, trafficClass);
EM_SAME_PLACE(comm_name, commName);
EM_SAME_PLACE(collnet_enable, collnetEnable);
EM_SAME_PLACE(cta_policy, CTAPolicy);
EM_SAME_PLACE(shrink_share, shrinkShare);
EM_SAME_PLACE(nvls_ctas, nvlsCTAs);
EM_SAME_PLACE(num_channels_per_net_peer, nChannelsPerNetPeer);
EM_SAME_PLACE(nvlink_centric_sched, nvlinkCentricSched);
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(static_cast<int>(NcclResult::in_progress) == ncclInProgress);
static_assert(static_cast<int>(NcclResult::remote_error) == ncclRemoteError);
static_assert(kNcclBytes == ncclInt8 && sizeof(NcclResult) == sizeof(ncclResult_t));
static_assert(NcclConfig::kUndefined == NCCL_CONFIG_UNDEF_INT);

TEST(NcclApi, ADefaultConfigurationIsTheLibrarys) {
  ncclConfig_t const theirs = NCCL_CONFIG_INITIALIZER;
  NcclConfig const ours;
  EXPECT_EQ(ours.magic, theirs.magic);
  EXPECT_EQ(ours.blocking, theirs.blocking);
  EXPECT_EQ(ours.nvlink_centric_sched, theirs.nvlinkCentricSched);
  EXPECT_GE(theirs.version, ours.version);
  EXPECT_GE(theirs.size, ours.size);
}
#endif

class Environment {
 public:
  Environment(char const* name, char const* value) : name_(name) { setenv(name, value, 1); }
  ~Environment() { unsetenv(name_); }
  Environment(Environment const&) = delete;
  Environment& operator=(Environment const&) = delete;

 private:
  char const* name_;
};

std::string refusal() {
  try {
    load_nccl();
  } catch (NcclError const& error) {
    return error.what();
  }
  return "";
}

TEST(NcclApi, ALibraryThatIsNotThereIsNamed) {
  Environment const library("EXPERTMESH_NCCL", "/nowhere/libnccl.so.2");
  EXPECT_NE(refusal().find("/nowhere/libnccl.so.2"), std::string::npos) << refusal();
}

TEST(NcclApi, AnotherLibraryIsRefusedByWhatItLacks) {
  Environment const library("EXPERTMESH_NCCL", "libm.so.6");
  EXPECT_EQ(refusal(), "dlsym: it has no ncclGetVersion (0) [libm.so.6]");
}

TEST(NcclApi, AnOldOneIsRefusedByItsVersion) {
  Environment const library("EXPERTMESH_NCCL", EM_NCCL_ON_HOST);
  {
    Environment const version("EM_NCCL_ON_HOST_VERSION", "22703");
    EXPECT_EQ(refusal(), "ncclGetVersion: NCCL 2.27.3 is too old: 2.28.0 at least (22703) [" EM_NCCL_ON_HOST "]");
  }
  EXPECT_EQ(refusal(), "");
  EXPECT_EQ(load_nccl()->version(), 22899);
}

TEST(NcclApi, IdsSurviveBeingText) {
  Environment const library("EXPERTMESH_NCCL", EM_NCCL_ON_HOST);
  std::string const text = make_nccl_id(*load_nccl());
  ASSERT_EQ(text.size(), 256U);
  EXPECT_TRUE(nccl_id_of(text));
  EXPECT_FALSE(nccl_id_of(""));
  EXPECT_FALSE(nccl_id_of(text + "0"));
  EXPECT_FALSE(nccl_id_of("g" + text.substr(1)));
  EXPECT_FALSE(nccl_id_of("-" + text.substr(1)));
  EXPECT_FALSE(nccl_id_of(" 1" + text.substr(2)));
  EXPECT_EQ(static_cast<unsigned char>(nccl_id_of("ff" + text.substr(2))->internal[0]), 0xff);
}

}  // namespace
}  // namespace expertmesh
