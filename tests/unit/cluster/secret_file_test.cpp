#include "coordinator/cluster/secret_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

namespace expertmesh {
namespace {

TEST(SecretFile, OnlyItsOwnerCanReadItAndItGoesAway) {
  std::filesystem::path path;
  {
    SecretFile const secret;
    path = secret.path();
    struct stat info {};
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600U);
    ASSERT_EQ(stat(path.parent_path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700U);

    std::string token;
    std::ifstream(path) >> token;
    EXPECT_EQ(token.size(), 64U);
    EXPECT_EQ(secret.secret(), token);
    EXPECT_NE(SecretFile().secret(), token);
  }
  EXPECT_FALSE(std::filesystem::exists(path.parent_path()));
}

}  // namespace
}  // namespace expertmesh
