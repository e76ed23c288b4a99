# What every target of the house shares: warnings, hardening (docs/reference: build), and two ways to declare a target.
add_library(backstory_flags INTERFACE)
target_include_directories(backstory_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(backstory_flags INTERFACE
  # GCC 12 reports a false -Wrestrict on "text" + std::to_string(n) (its bug 105651).
  -Wall -Wextra -Wno-missing-field-initializers $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
  $<$<BOOL:${BACKSTORY_WERROR}>:-Werror>
  -fstack-protector-strong
  $<$<CONFIG:Release>:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>)
target_compile_definitions(backstory_flags INTERFACE _GLIBCXX_ASSERTIONS)
target_link_options(backstory_flags INTERFACE -Wl,-z,relro,-z,now)
if(BACKSTORY_SANITIZE)
  list(JOIN BACKSTORY_SANITIZE "," sanitizers)
  target_compile_options(backstory_flags INTERFACE -fsanitize=${sanitizers} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(backstory_flags INTERFACE -fsanitize=${sanitizers})
endif()
if(BACKSTORY_FUZZ)
  # The fuzzer is blind in code that is not instrumented for it: the libraries under test are, not only the target.
  target_compile_options(backstory_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# backstory_library(NAME SOURCES a.cc a.h DEPS ...): one concept, static, linked to the shared flags.
function(backstory_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC backstory_flags ${arg_DEPS} PRIVATE ${arg_PRIVATE_DEPS})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

# backstory_cold(TARGET ...): command lines and generated stubs run once per command or call, and are the slowest files to
# compile; the optimiser's time buys nothing there. Tests too: what they test keeps the build's flags.
function(backstory_cold)
  foreach(name IN LISTS ARGN)
    target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  endforeach()
endfunction()

# backstory_test(NAME SOURCES tests/room/a_test.cc DEPS ... [LABELS tier1]): one GoogleTest executable, one ctest
# entry. Default label: tier1. Label "asan" puts it into the sanitizer run as well, "tsan" into the thread one.
function(backstory_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT BACKSTORY_TESTS)
    return()
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS tier1)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE backstory_flags ${arg_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  backstory_cold(${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  # tests_asan builds exactly the tests of the sanitizer run, and so on per label.
  foreach(label IN LISTS arg_LABELS)
    if(NOT TARGET tests_${label})
      add_custom_target(tests_${label})
    endif()
    add_dependencies(tests_${label} ${name})
  endforeach()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "BACKSTORY_SOURCE_DIR=${CMAKE_SOURCE_DIR};BACKSTORY_BINARY_DIR=${CMAKE_BINARY_DIR}")
endfunction()

# backstory_fuzz(NAME DEPS ...): tests/fuzz/NAME_fuzz.cc as a test that replays tests/fuzz/corpus/NAME and mutants of it,
# and with BACKSTORY_FUZZ (the preset "fuzz") as the libFuzzer program NAME_fuzz.
function(backstory_fuzz name)
  cmake_parse_arguments(arg "" "" "DEPS" ${ARGN})
  set(folder ${CMAKE_SOURCE_DIR}/tests/fuzz)
  backstory_test(${name}_fuzz_test SOURCES ${folder}/replay_test.cc ${folder}/${name}_fuzz.cc DEPS ${arg_DEPS}
    LABELS tier1 asan)
  if(TARGET ${name}_fuzz_test)
    target_compile_definitions(${name}_fuzz_test PRIVATE BACKSTORY_FUZZ_CORPUS="${name}")
  endif()
  backstory_fuzzer(${name} ${arg_DEPS})
endfunction()

# The libFuzzer program alone, for a target whose replay is a test of its own.
function(backstory_fuzzer name)
  if(NOT BACKSTORY_FUZZ)
    return()
  endif()
  add_executable(${name}_fuzz ${CMAKE_SOURCE_DIR}/tests/fuzz/${name}_fuzz.cc)
  target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
  target_link_libraries(${name}_fuzz PRIVATE backstory_flags ${ARGN})
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)
  endif()
  add_dependencies(fuzzers ${name}_fuzz)
endfunction()
