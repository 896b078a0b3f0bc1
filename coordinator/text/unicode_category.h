// General categories of Unicode 16, whatever Unicode the installed utf8proc has.
#pragma once
#include <utf8proc.h>

namespace expertmesh {

utf8proc_category_t general_category(char32_t c);

}  // namespace expertmesh
