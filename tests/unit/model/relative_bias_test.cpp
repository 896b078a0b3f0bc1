// Distances and their buckets, as transformers 5.23 (torch 2.15) has them.
#include "coordinator/model/relative_bias.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace expertmesh {
namespace {

struct Buckets {
  RelativeBiasSpec spec;
  // (the first distance from the left, its bucket), up to the next one; -1200 … 1200 in all
  std::vector<std::pair<std::int64_t, std::size_t>> runs;
};

TEST(RelativeBias, BucketsAreTheReferences) {
  for (auto const& [spec, runs] : std::vector<Buckets>{
           {{.weight = "", .buckets = 32, .max_distance = 128, .bidirectional = true},
            {{-1200, 15}, {-90, 14}, {-63, 13}, {-45, 12}, {-31, 11}, {-22, 10}, {-15, 9}, {-11, 8},
             {-7, 7},     {-6, 6},   {-5, 5},   {-4, 4},   {-3, 3},   {-2, 2},   {-1, 1},  {0, 0},
             {1, 17},     {2, 18},   {3, 19},   {4, 20},   {5, 21},   {6, 22},   {7, 23},  {8, 24},
             {12, 25},    {16, 26},  {23, 27},  {32, 28},  {46, 29},  {64, 30},  {91, 31}}},
           {{.weight = "", .buckets = 32, .max_distance = 128},
            {{-1200, 31}, {-112, 30}, {-98, 29}, {-86, 28}, {-76, 27}, {-66, 26}, {-58, 25}, {-51, 24},
             {-45, 23},   {-39, 22},  {-34, 21}, {-30, 20}, {-26, 19}, {-23, 18}, {-20, 17}, {-18, 16},
             {-15, 15},   {-14, 14},  {-13, 13}, {-12, 12}, {-11, 11}, {-10, 10}, {-9, 9},   {-8, 8},
             {-7, 7},     {-6, 6},    {-5, 5},   {-4, 4},   {-3, 3},   {-2, 2},   {-1, 1},   {0, 0}}},
           {{.weight = "", .buckets = 12, .max_distance = 40, .bidirectional = true},
            {{-1200, 5}, {-16, 4}, {-7, 3}, {-2, 2}, {-1, 1}, {0, 0}, {1, 7}, {2, 8}, {3, 9}, {8, 10}, {17, 11}}},
           {{.weight = "", .buckets = 12, .max_distance = 40},
            {{-1200, 11},
             {-29, 10},
             {-21, 9},
             {-15, 8},
             {-11, 7},
             {-8, 6},
             {-5, 5},
             {-4, 4},
             {-3, 3},
             {-2, 2},
             {-1, 1},
             {0, 0}}},
           {{.weight = "", .buckets = 7, .max_distance = 9, .bidirectional = true},
            {{-1200, 2}, {-2, 1}, {0, 0}, {1, 4}, {3, 5}}},
       })
    for (std::size_t r = 0; r < runs.size(); ++r)
      for (std::int64_t d = runs[r].first; d < (r + 1 < runs.size() ? runs[r + 1].first : 1201); ++d)
        ASSERT_EQ(bucket_of(spec, d), runs[r].second)
            << spec.buckets << " buckets to " << spec.max_distance << ", distance " << d;
}

}  // namespace
}  // namespace expertmesh
