// The live page, held by the program itself: it finds no file, and needs none.
#pragma once
#include <span>
#include <string_view>

namespace expertmesh {

struct PageFile {
  char const* path;  // "/", "/ui/app.js"
  char const* content_type;
  std::string_view text;
};
std::span<PageFile const> page_files();

}  // namespace expertmesh
