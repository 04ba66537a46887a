// SPDX-License-Identifier: Apache-2.0
// Each __shared__ variable is a static in a linker section of its own (one common section would mix template and plain
// functions, which the compiler refuses). Section headers are not loaded with the program, so they are read from its
// file.
#include "simt/shared_sections.h"

#include <elf.h>
#include <link.h>

#include <cstring>
#include <fstream>
#include <string>

namespace pe::simt {
namespace {

using Sections = std::vector<std::pair<unsigned char*, size_t>>;

template <typename T>
std::vector<T> read_at(std::ifstream& file, uint64_t offset, size_t count) {
  std::vector<T> items(count);
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(items.data()), static_cast<std::streamsize>(count * sizeof(T)));
  if (!file) items.clear();
  return items;
}

int add_sections_of(dl_phdr_info* object, size_t, void* sections) {
  const std::string path = object->dlpi_name[0] == '\0' ? "/proc/self/exe" : object->dlpi_name;
  std::ifstream file(path, std::ios::binary);
  const auto header = read_at<ElfW(Ehdr)>(file, 0, 1);
  if (header.empty() || std::memcmp(header[0].e_ident, ELFMAG, SELFMAG) != 0) return 0;
  const auto table = read_at<ElfW(Shdr)>(file, header[0].e_shoff, header[0].e_shnum);
  if (header[0].e_shstrndx >= table.size()) return 0;
  const auto& strings = table[header[0].e_shstrndx];
  const auto names = read_at<char>(file, strings.sh_offset, strings.sh_size);
  for (const auto& section : table) {
    if (section.sh_name >= names.size() || std::strncmp(&names[section.sh_name], "pe_shared_", 10) != 0) continue;
    auto* begin = reinterpret_cast<unsigned char*>(object->dlpi_addr + section.sh_addr);
    static_cast<Sections*>(sections)->emplace_back(begin, section.sh_size);
  }
  return 0;
}

}  // namespace

const Sections& shared_sections() {
  static const Sections found = [] {
    Sections sections;
    dl_iterate_phdr(add_sections_of, &sections);
    return sections;
  }();
  return found;
}

}  // namespace pe::simt
