#include "common/base/host_port.h"

#include <gtest/gtest.h>

#include <array>

namespace expertmesh {
namespace {

TEST(HostPort, IsTakenApart) {
  for (auto const& [text, host, port] :
       {std::array{"10.0.0.1:7070", "10.0.0.1", "7070"}, std::array{"n1.example:1", "n1.example", "1"},
        std::array{"[::1]:65535", "::1", "65535"}}) {
    auto const found = split_host_port(text);
    ASSERT_TRUE(found) << text;
    EXPECT_EQ(found->host, host);
    EXPECT_EQ(found->port, port);
  }
}

TEST(HostPort, WhatIsNoneIsToldFromIt) {
  for (char const* text : {"", "A", "10.0.0.1", ":7070", "A:", "A:0", "A:65536", "A:123456", "A:-1", "A:7070x", "A: 1",
                           "http://A:1", "A:1:2", "A:1,B:2", "A, B:1", " A:1", "::1:2"})
    EXPECT_FALSE(split_host_port(text)) << text;
}

}  // namespace
}  // namespace expertmesh
